"""The pretrained hypernetworks: made at a small size, saved, loaded, and adapted."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sparsehyper import HyperNetwork, fit_embedding

PROGRAM = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "pretrained" / "run.py"))


def test_a_pretrained_hypernetwork_loads_by_itself_and_learns_a_new_task(tmp_path):
    hnet, figures = PROGRAM["make"]("digits", tmp_path / "digits", steps=200, seconds=0.5)
    card = (tmp_path / "digits" / "README.md").read_text()
    for what, value in figures.items():
        assert f"| {what} | {value} |" in card
    mean, worst, new = (float(v[:-1]) for what, v in figures.items() if "accuracy" in what)
    assert 90 < mean <= 100
    assert 75 < worst <= mean
    assert 70 < new <= 100
    assert len(hnet.task_names) == 28

    loaded = HyperNetwork.from_pretrained(tmp_path / "digits")
    # As the card says, and nothing else.
    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    shown = figures["input"]
    mean, std = (float(shown.partition(" - ")[2].split(")")[0]), float(shown.split("/ ")[-1]))
    x = ((images.float() * 255 / 16).round() / 255 - mean) / std
    own = (digits == 3) | (digits == 5)
    predicted = loaded(x[own].view(-1, 1, 8, 8), task="3-5").argmax(1)
    assert (predicted == (digits[own] == 5)).float().mean() > 0.9
    assert type(loaded.materialize("3-5")) is nn.Sequential
    new = torch.cat([(digits == digit).nonzero()[:10, 0] for digit in (8, 9)])
    few = x[new].view(-1, 1, 8, 8), (digits[new] == 9).long()
    fit_embedding(loaded, "8-9", few)
    assert (loaded(few[0], task="8-9").argmax(1) == few[1]).float().mean() > 0.8


def test_what_is_saved_is_checked(tmp_path, monkeypatch):
    from sparsehyper import Sparse, TaskEmbedding

    check, x = PROGRAM["_check"], torch.randn(3, 4)
    hnet = HyperNetwork(nn.Linear(4, 2), Sparse(), TaskEmbedding(["a"], dim=8)).eval()
    hnet.save_pretrained(tmp_path / "small")
    check(hnet, tmp_path / "small", x)
    with torch.no_grad():
        next(hnet.generator.parameters()).add_(1e-3)
    with pytest.raises(RuntimeError, match="gives other outputs for task 'a'"):
        check(hnet, tmp_path / "small", x)
    monkeypatch.setitem(check.__globals__, "MOST_BYTES", 100)
    with pytest.raises(RuntimeError, match=r"has [\d,]+ bytes; at most 100 are allowed"):
        check(hnet, tmp_path / "small", x)
    (tmp_path / "old").mkdir()
    with pytest.raises(FileExistsError, match="old"):
        PROGRAM["make"]("digits", tmp_path / "old")


def test_they_are_uploaded_with_their_figures(tmp_path, monkeypatch, capsys):
    class Made:
        def push_to_hub(self, repo_id, *, figures):
            return f"{repo_id}: {figures}"

    main = PROGRAM["main"]
    monkeypatch.setitem(main.__globals__, "make", lambda name, out: (Made(), {"input": out.name}))
    monkeypatch.setattr(sys, "argv", ["run.py", "mnist", "--out", str(tmp_path), "--push", "me"])
    main()
    assert "me/sparsehyper-mnist: {'input': 'mnist'}\n" in capsys.readouterr().out
