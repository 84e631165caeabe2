"""Searches go on after their last trial, and never mix settings."""

from __future__ import annotations

import os

import pytest

from sparsehyper.lab.studies import search
from sparsehyper.lab.studies.cells import CELLS, Workspace, shared_tasks
from sparsehyper.lab.studies.search import LR, run_searches
from sparsehyper.training import CheckpointError

SPACE = {LR: (1e-4, 1e-1), "method.growth": (2.0, 4.0)}


@pytest.fixture
def settings(experiment):
    return {
        "experiment": experiment.to_dict(),
        "space": {path: list(choices) for path, choices in SPACE.items()},
        "trials": 5,
        "name": "one",
    }


@pytest.fixture(scope="module")
def files(experiment, tmp_path_factory):
    with shared_tasks(tmp_path_factory.mktemp("study"), [experiment.data], None) as found:
        yield found


def test_a_search_that_was_stopped_draws_no_trial_again(settings, files, tmp_path, monkeypatch):
    journals = {"one": tmp_path / "one.jsonl"}
    rates, trained = [], search.trained

    def stop_at_the_third(experiment, tasks):
        if len(rates) == 2:
            rates.clear()
            raise KeyboardInterrupt
        rates.append(experiment.training.lr)
        return trained(experiment, tasks)

    monkeypatch.setattr(search, "trained", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        search._search(settings, files, journals)
    monkeypatch.setattr(search, "trained", trained)
    found = search._search(settings, files, journals)
    drawn = [trial["settings"][LR] for trial in found["trials"]]
    assert len(drawn) == len(set(drawn)) == 5
    assert drawn[0] == 2e-3  # the experiment's own
    assert all(1e-4 <= lr <= 1e-1 for lr in drawn)
    assert found["validation"] == max(trial["validation"] for trial in found["trials"])


def test_a_journal_of_other_settings_is_refused(settings, files, tmp_path):
    journals = {"one": tmp_path / "one.jsonl"}
    search._search({**settings, "trials": 1}, files, journals)
    with pytest.raises(ValueError, match="its `trials` is 1, got 2"):
        search._search({**settings, "trials": 2}, files, journals)


def test_a_line_cut_short_is_no_trial(settings, files, tmp_path):
    path = tmp_path / "one.jsonl"
    journals = {"one": path}
    first = search._search(settings, files, journals)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in (0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[3] - 1, ends[-1] - 1):
        path.write_bytes(whole[:length])
        again = search._search(settings, files, journals)
        assert [t["settings"] for t in again["trials"]] == [t["settings"] for t in first["trials"]]
        assert again["validation"] == first["validation"]
        assert len(path.read_bytes().splitlines()) == 6


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "\udc80",
        "7",
        '{"settings": {}, "validation": NaN, "seconds": 1}',
        "[" * 100_000,
        "[]",
        '{"settings": {}}',
        '{"settings": 1, "validation": 2, "seconds": 3}',
    ],
)
def test_a_damaged_line_names_the_file_and_the_remedy(settings, files, tmp_path, line):
    path = tmp_path / "one.jsonl"
    journals = {"one": path}
    search._search({**settings, "trials": 1}, files, journals)
    with path.open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(CheckpointError, match=r"one\.jsonl is damaged: .*; remove the file to sea"):
        search._search({**settings, "trials": 1}, files, journals)


@pytest.mark.parametrize("content", [b"my notes", b"my notes\nof two lines", b"[1]\nx", b"3\nx"])
def test_a_file_that_is_no_journal_is_left_as_it_was(settings, files, tmp_path, content):
    path = tmp_path / "one.jsonl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"one\.jsonl is damaged: .*; remove the file to sea"):
        search._search(settings, files, {"one": path})
    assert path.read_bytes() == content


def test_a_journal_that_is_a_link_or_a_pipe(settings, files, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("kept")
    for place in (mine, tmp_path / "nothing"):
        path = tmp_path / f"{place.name}.jsonl"
        path.symlink_to(place)
        with pytest.raises(CheckpointError, match=r"jsonl is a link, .*; remove the file to sear"):
            search._search(settings, files, {"one": path})
    assert mine.read_text() == "kept"
    assert not (tmp_path / "nothing").exists()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(CheckpointError, match=r"pipe\.jsonl is not a regular file"):
        search._search(settings, files, {"one": tmp_path / "pipe.jsonl"})


def test_a_trial_that_diverges_counts_for_nothing(settings, files, tmp_path):
    settings["space"] = {LR: [1e30, 1e35]}
    settings["experiment"]["training"] |= {"lr": 1e30, "clip": None, "steps": 20, "eval_every": 20}
    journals = {"one": tmp_path / "one.jsonl"}
    found = search._search({**settings, "trials": 1}, files, journals)
    assert found["validation"] == 0


def test_it_is_a_cell_of_the_study(experiment, files, tmp_path):
    workspace = Workspace(tmp_path, files, workers=1, quiet=True)
    one = run_searches({"one": (experiment, SPACE)}, 2, workspace)
    again = run_searches({"one": (experiment, SPACE)}, 2, workspace)
    assert one == again
    assert os.listdir(tmp_path) == [CELLS]  # without a journal, as the cell has the trials
    with pytest.raises(ValueError, match="its `trials` is 2, got 3"):
        run_searches({"one": (experiment, SPACE)}, 3, workspace)


UNTIL = {LR: (1e-6, 1.0), "latent_dim": (4, 8, 16, 32, 64)}


def best_at(monkeypatch, score):
    """Trials are not trained; a score of their settings is their validation accuracy."""

    def tried(experiment, tasks, settings):
        return {"settings": settings, "validation": score(settings), "seconds": 0.0}

    monkeypatch.setattr(search, "_try", tried)


def test_a_range_grows_while_the_best_trial_is_at_its_end(settings, files, tmp_path, monkeypatch):
    best_at(monkeypatch, lambda chosen: chosen["latent_dim"] / 64)
    settings["experiment"]["latent_dim"] = 8
    settings |= {"space": {LR: [1e-3, 4e-3], "latent_dim": [8, 16]}, "until": UNTIL, "trials": 6}
    found = search._search(settings, files, {"one": tmp_path / "one.jsonl"})
    drawn = [trial["settings"]["latent_dim"] for trial in found["trials"]]
    assert set(drawn[:6]) == {8, 16}  # the range to start from
    assert found["settings_found"]["latent_dim"] in (32, 64)
    assert 6 < len(drawn) <= 6 + 3 * 2  # three rounds of a trial for each setting
    again = search._search(settings, files, {"one": tmp_path / "one.jsonl"})
    assert again == found


def test_what_is_still_at_an_end_is_said(settings, files, tmp_path, monkeypatch):
    best_at(monkeypatch, lambda chosen: chosen[LR])
    settings |= {"space": {LR: [1e-3, 4e-3]}, "until": {LR: (1e-6, 1.0)}, "trials": 8}
    found = search._search(settings, files, {"one": tmp_path / "one.jsonl"})
    assert found["settings_found"][LR] > 4e-3
    best_at(monkeypatch, lambda chosen: -abs(chosen[LR] - 2e-3))
    found = search._search(settings, files, {"one": tmp_path / "two.jsonl"})
    assert found["at_an_end"] == []
    assert len(found["trials"]) == 8


def test_what_cannot_meet_the_budget_is_no_trial(settings, files, tmp_path, monkeypatch):
    best_at(monkeypatch, lambda chosen: 0.5)
    settings["experiment"] |= {"budget": 1.0, "base": "zeros"}
    settings |= {"space": {LR: [1e-3, 4e-3], "base": ["zeros", "learned"]}, "trials": 6}
    found = search._search(settings, files, {"one": tmp_path / "one.jsonl"})
    assert {trial["settings"]["base"] for trial in found["trials"]} == {"zeros"}


def test_two_searches_draw_different_trials(settings, files, tmp_path, monkeypatch):
    best_at(monkeypatch, lambda chosen: 0.5)
    drawn = [
        [trial["settings"][LR] for trial in found["trials"]]
        for name in ("one", "two")
        for found in [search._search({**settings, "name": name}, files, {name: tmp_path / name})]
    ]
    assert drawn[0][0] == drawn[1][0] == 2e-3
    assert not set(drawn[0][1:]) & set(drawn[1][1:])
