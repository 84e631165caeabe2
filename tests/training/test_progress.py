from __future__ import annotations

import io
import re
import sys

from sparsehyper.training import Evaluation
from sparsehyper.training.progress import Progress

FOUND = Evaluation(("shoes", "bags"), (0.75, 0.5), (0.1, 0.2))


def show(**settings):
    with Progress(200, 50, **settings) as progress:
        progress.update(100, 0.25, 1234.0)
        progress.evaluated(100, FOUND, 83.0)
        progress.update(101, 0.125, 1234.0)


def test_plain_lines_off_a_terminal(capsys):
    show()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "step 100/200 (50%)  loss 0.2500  val 62.50% (worst 50.00% bags)  1,234 samples/s  "
        "0:00 elapsed  1:23 left\n"
    )


def test_quiet(capsys):
    show(show=False)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on_a_terminal(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    show()
    return re.sub(r"\x1b\[[?\d;]*\w", "", terminal.getvalue())


def test_a_narrow_terminal_has_the_percentage_and_the_loss(monkeypatch):
    shown = shown_on_a_terminal(monkeypatch, 40)
    assert " 50% 0:00:00 loss 0.1250" in shown
    assert "/200" not in shown


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    shown = shown_on_a_terminal(monkeypatch, 120)
    assert "101/200" in shown
    assert " 50% " in shown
    assert "val 62.50%" in shown
    assert "1,234 samples/s" in shown
    assert capsys.readouterr().out == ""


def test_hours_left(capsys):
    with Progress(2) as progress:
        progress.evaluated(1, FOUND, 3723.0)
    assert "1:02:03 left" in capsys.readouterr().err
