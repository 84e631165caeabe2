from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import pytest

from helpers.process_calls import (
    finish_when_told,
    kill_itself,
    nap_unless_first,
    outlive_ctrl_c,
    process_and_argument,
    raise_error,
)
from sparsehyper.training import Interrupted
from sparsehyper.training.isolation import (
    ChildError,
    DiedError,
    call_in_process,
    calls_in_processes,
    scratch,
)


def test_a_call_elsewhere():
    process, argument = call_in_process(process_and_argument, {"a": (1, 2)})
    assert process != os.getpid()
    assert argument == {"a": (1, 2)}


def test_an_exception_there():
    with pytest.raises(ChildError, match=r"^ValueError: the message$"):
        call_in_process(raise_error, "the message")


def test_a_death_there():
    with pytest.raises(DiedError, match=r"the process died with exit code 3$"):
        call_in_process(os._exit, 3)
    with pytest.raises(DiedError, match="exit code -9, killed, most likely because memory ran out"):
        call_in_process(kill_itself)


def test_several_at_a_time():
    arguments = [(7, 2), (1, 0), (9, 4)]
    with closing(calls_in_processes(divmod, arguments, workers=2)) as outcomes:
        found = dict(outcomes)
    assert (found[0], found[2]) == ((3, 1), (2, 1))
    assert str(found[1]).startswith("ZeroDivisionError: ")


def test_processes_end_with_whoever_asks_for_no_more(tmp_path):
    """Although they would never end by themselves."""
    arguments = [({"i": 0}, tmp_path), ({"i": 1}, tmp_path)]
    with closing(calls_in_processes(nap_unless_first, arguments, workers=2)) as outcomes:
        assert next(outcomes) == (0, None)
    (process,) = (int(path.stem) for path in tmp_path.glob("*.pid"))
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_ctrl_c_of_a_terminal_reaches_this_process_alone(tmp_path):
    """A terminal sends it to both; this process passes it on as SIGTERM."""
    path = tmp_path / "file"
    assert call_in_process(outlive_ctrl_c, path) == "it went on"


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".tasks").mkdir()
    (tmp_path / ".tasks" / "old.pt").touch()
    with scratch(tmp_path) as folder:
        assert not list(folder.iterdir())
        (folder / "new.pt").touch()
    assert not list(tmp_path.iterdir())


def test_a_signal_lets_it_finish(tmp_path):
    path = tmp_path / "file"

    def interrupt():
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="stopped"):
        call_in_process(finish_when_told, path)
    assert path.read_text() == "finished"
