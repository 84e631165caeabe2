"""The choice of hyperparameters: equally many trials for every method, judged on validation images.

A search is a cell of the study. While it runs, its trials are kept in a journal,
``search/<name>.jsonl``: a line of JSON with the settings of the search, then one for each trial. A
search that was stopped continues after the last of them. Once the searches are done their journals
are removed, as the cells hold the trials.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from sparsehyper._util.extras import require
from sparsehyper._util.files import parse_json, read_file
from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.runs.config import DataConfig, Experiment, up_to_date
from sparsehyper.lab.studies.cells import Cell, Workspace
from sparsehyper.lab.studies.trainings import trained
from sparsehyper.training import CheckpointError, NonFiniteError
from sparsehyper.training.directory import check_same, json_ready

# Path of a setting in an experiment → its choices, the default first. A learning rate has its lower
# and upper bound instead, and is drawn on a log scale.
Space = Mapping[str, tuple[Any, ...]]

LR = "training.lr"
LRS = (5e-4, 2e-2)
SEARCH_SEED = 1000  # differs from the seeds of all runs


def run_searches(
    searches: Mapping[str, tuple[Experiment, Space]], trials: int, workspace: Workspace
) -> dict[str, dict[str, Any]]:
    """Run the searches that have not been completed yet.

    The first trial has the experiment's own settings; the tree-structured Parzen estimator chooses
    the others.

    Args:
        searches: an experiment and its search space, by name of the cell.
        trials: number of trials of each search.
        workspace: the study's workspace.

    Returns:
        By name: ``settings_found``, by path; the ``validation`` accuracy they reached; ``trials``,
        each with its settings, accuracy and seconds; and the total ``seconds``.

    Raises:
        MissingExtraError: Optuna is not installed.
        RuntimeError: some searches failed, for instance because a journal is damaged.

    Source: T. Akiba et al., "Optuna: A next-generation hyperparameter optimization framework" (KDD
    2019).
    """
    require("optuna", "study")
    cells = [
        Cell(
            name,
            {
                "fingerprint": workspace.files[experiment.data].fingerprint,
                "experiment": experiment.to_dict(),
                "space": {path: list(choices) for path, choices in space.items()},
                "trials": trials,
                "name": name,
            },
        )
        for name, (experiment, space) in searches.items()
    ]
    folder = workspace.directory / "search"
    folder.mkdir(parents=True, exist_ok=True)
    journals = {name: folder / f"{name}.jsonl" for name in searches}
    found = workspace.run(cells, _search, journals)
    for journal in journals.values():
        journal.unlink(missing_ok=True)
    with suppress(OSError):  # files of others may be there
        folder.rmdir()
    return found


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """An experiment with some settings changed, each given by its path.

    >>> from sparsehyper.lab.runs import DataConfig
    >>> from sparsehyper.training import TrainConfig
    >>> experiment = Experiment(DataConfig(tasks="split:2"), TrainConfig(steps=9))
    >>> changed = with_settings(experiment, {"training.lr": 0.01, "method.growth": 4.0})
    >>> changed.training.lr, changed.method.growth
    (0.01, 4.0)
    """
    for path, value in settings.items():
        part, _, name = path.rpartition(".")
        if part:
            value = replace(getattr(experiment, part), **{name: value})
        experiment = replace(experiment, **{part or name: value})
    return experiment


def _search(
    settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks], journals: Mapping[str, Path]
) -> dict[str, Any]:
    optuna = require("optuna", "study")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    experiment = Experiment.from_dict(settings["experiment"])
    space = settings["space"]
    tasks = files[experiment.data].load()
    path = journals[settings["name"]]
    ranges = {p: _distribution(optuna.distributions, p, choices) for p, choices in space.items()}
    study = optuna.create_study(direction="maximize")
    trials = _recorded_trials(path, settings)
    try:
        for trial in trials:
            known = {"params": trial["settings"], "value": trial["validation"]}
            study.add_trial(optuna.trial.create_trial(**known, distributions=ranges))
        spent = sum(trial["seconds"] for trial in trials)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(f"{path} is damaged: {error}") from error
    if not trials:
        own = {p: experiment.training.lr if p == LR else space[p][0] for p in space}
        study.enqueue_trial(own)
    while len(trials) < settings["trials"]:
        # a seed for each trial, so that a search that continues does not repeat one
        study.sampler = optuna.samplers.TPESampler(seed=len(trials), n_startup_trials=4)
        asked = study.ask(ranges)
        found = _try(with_settings(experiment, asked.params), tasks, asked.params)
        study.tell(asked, found["validation"])
        _append(path, found)
        trials.append(found)
        spent += found["seconds"]
    best = max(trials, key=lambda trial: trial["validation"])
    return {
        "settings_found": best["settings"],
        "validation": best["validation"],
        "trials": trials,
        "seconds": spent,
    }


def _try(experiment: Experiment, tasks: TaskSet, settings: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        validation = trained(experiment, tasks)[1].best.accuracy
    except NonFiniteError:
        validation = 0.0
    seconds = time.perf_counter() - began
    return {"settings": settings, "validation": validation, "seconds": seconds}


def _distribution(distributions: Any, path: str, choices: list[Any]) -> Any:
    if path == LR:
        return distributions.FloatDistribution(*choices, log=True)
    return distributions.CategoricalDistribution(choices)


def _recorded_trials(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the trials of a journal, or begin it where there is none.

    A last line that was cut short is removed from it. A file that does not begin with these
    settings is left as it is.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        content = b""
    except CheckpointError as error:
        raise _damaged(str(error)) from error
    whole = content[: content.rfind(b"\n") + 1]
    if not whole and not _line(settings).startswith(content):
        raise _damaged(f"{path} is damaged: it does not begin with the settings of a search")
    trials = []
    if whole:
        try:
            recorded, *trials = (parse_json(line, path) for line in whole.split(b"\n")[:-1])
        except CheckpointError as error:
            raise _damaged(str(error)) from error
        if not isinstance(recorded, dict):
            raise _damaged(f"{path} is damaged: its first line is not an object")
        try:
            check_same(f"the search in {path}", up_to_date(recorded), json_ready(settings), ())
        except RecursionError as error:
            raise _damaged(f"{path} is damaged: {error}") from error
    if len(whole) < len(content):
        with _open_journal(path) as file:
            file.truncate(len(whole))
    if not whole:
        _append(path, settings)
    return trials


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"{what}; remove the file to search anew")


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _append(path: Path, value: dict[str, Any]) -> None:
    with _open_journal(path) as file:
        file.write(_line(value))
        file.flush()
        os.fsync(file.fileno())


def _open_journal(path: Path) -> BinaryIO:
    """The file, open for appending; a link is not followed."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab")
