"""Searches go on after their last trial, and never mix settings."""

from __future__ import annotations

import pytest

from sparsehyper.experiments.studies import search
from sparsehyper.experiments.studies.cells import shared_tasks
from sparsehyper.experiments.studies.search import LR, run_searches

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
def files(experiment):
    with shared_tasks([experiment.data], None) as found:
        yield found


def test_a_search_that_was_stopped_draws_no_trial_again(settings, files, tmp_path, monkeypatch):
    journals = {"one": str(tmp_path / "one.journal")}
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
    journals = {"one": str(tmp_path / "one.journal")}
    search._search({**settings, "trials": 1}, files, journals)
    with pytest.raises(ValueError, match="its `trials` is 1, got 2"):
        search._search({**settings, "trials": 2}, files, journals)


def test_a_trial_that_diverges_counts_for_nothing(settings, files, tmp_path):
    settings["space"] = {LR: [1e30, 1e35]}
    settings["experiment"]["training"] |= {"lr": 1e30, "clip": None, "steps": 20, "eval_every": 20}
    journals = {"one": str(tmp_path / "one.journal")}
    found = search._search({**settings, "trials": 1}, files, journals)
    assert found["validation"] == 0


def test_it_is_a_cell_of_the_study(experiment, files, tmp_path):
    assert experiment.data in files
    how = {"workers": 1, "quiet": True}
    one = run_searches({"one": (experiment, SPACE)}, 2, tmp_path, files, **how)
    again = run_searches({"one": (experiment, SPACE)}, 2, tmp_path, files, **how)
    assert one == again
    assert (tmp_path / "search" / "one.journal").exists()
    with pytest.raises(ValueError, match="its `trials` is 2, got 3"):
        run_searches({"one": (experiment, SPACE)}, 3, tmp_path, files, **how)
