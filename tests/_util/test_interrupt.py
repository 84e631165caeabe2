from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest

from sparsehyper._util import interrupt
from sparsehyper._util.interrupt import deferred_signals, raising_signals


def test_a_first_signal_only_asks():
    with deferred_signals() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()


def test_a_second_one_acts_unless_it_comes_at_once(monkeypatch):
    now = 100.0
    monkeypatch.setattr(interrupt, "time", SimpleNamespace(monotonic=lambda: now))
    with deferred_signals():
        signal.raise_signal(signal.SIGINT)
        now += 0.9 * interrupt.ECHO_SECONDS
        signal.raise_signal(signal.SIGINT)
        now += 0.2 * interrupt.ECHO_SECONDS
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with pytest.raises(ZeroDivisionError), deferred_signals():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_other_threads_leave_signals_alone():
    asked = []

    def work():
        with deferred_signals() as ask:
            asked.append(ask())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_either_signal_raises(number):
    before = signal.getsignal(number)
    with raising_signals() as came:
        assert not came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert came()
    assert signal.getsignal(number) is before


def test_an_error_made_of_an_interrupt_is_one_again():
    def load_library():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    with pytest.raises(KeyboardInterrupt), raising_signals():
        load_library()
    with pytest.raises(ImportError, match="by itself"), raising_signals():
        raise ImportError("by itself")


@pytest.mark.parametrize("within", [deferred_signals, raising_signals])
def test_an_ignored_signal_stays_ignored(within):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with within() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)
