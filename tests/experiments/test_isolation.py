from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from experiments.calls import finish_when_told, process_and_argument, raise_error
from sparsehyper.experiments.isolation import ChildError, call_in_process
from sparsehyper.training import Interrupted


def test_a_call_elsewhere():
    process, argument = call_in_process(process_and_argument, {"a": (1, 2)})
    assert process != os.getpid()
    assert argument == {"a": (1, 2)}


def test_an_exception_there():
    with pytest.raises(ChildError, match="the message"):
        call_in_process(raise_error, "the message")


def test_a_death_there():
    with pytest.raises(ChildError, match="the process died with exit code 3"):
        call_in_process(os._exit, 3)


def test_a_signal_lets_it_finish(tmp_path):
    path = tmp_path / "file"

    def interrupt():
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="stopped"):
        call_in_process(finish_when_told, path)
    assert path.read_text() == "finished"
