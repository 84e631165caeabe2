"""The choice of hyperparameters: as many trials for every method, judged on validation images.

A search is a cell of the study. Its trials are kept one by one, in ``search/<name>.journal``, so a
search that was stopped goes on after the last of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsehyper._extras import require
from sparsehyper.experiments.config import DataConfig, Experiment
from sparsehyper.experiments.studies.cells import Cell, SharedTasks, run_cells
from sparsehyper.experiments.studies.trainings import trained
from sparsehyper.training import NonFiniteError
from sparsehyper.training.run import check_same

# The path of a setting in an experiment → its choices, the default first; or the least and greatest
# of a learning rate, which is drawn in between on a log scale.
Space = Mapping[str, tuple[Any, ...]]

LR = "training.lr"
LRS = (5e-4, 2e-2)
SEARCH_SEED = 1000  # no run's


def run_searches(
    searches: Mapping[str, tuple[Experiment, Space]],
    trials: int,
    directory: Path,
    files: Mapping[DataConfig, SharedTasks],
    *,
    workers: int,
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """Search what has not been searched yet.

    The first trial is of the experiment's own settings, the others are chosen by the
    tree-structured Parzen estimator.

    Args:
        searches: an experiment and what may be chosen of it, by name of the cell.
        trials: of each search.
        directory: of the study.
        files: of `shared_tasks`.
        workers, quiet: as `run_cells` takes them.

    Returns:
        By name ``settings_found``, by path; the ``validation`` accuracy they reached; ``trials``,
        each with its settings, accuracy and seconds; and the ``seconds`` of all.

    Raises:
        MissingExtraError: Optuna is not installed.

    Source: T. Akiba et al., "Optuna: A next-generation hyperparameter optimization framework" (KDD
    2019).
    """
    require("optuna", "study")
    cells = [
        Cell(
            name,
            {
                "fingerprint": files[experiment.data].fingerprint,
                "experiment": experiment.to_dict(),
                "space": {path: list(choices) for path, choices in space.items()},
                "trials": trials,
                "name": name,
            },
        )
        for name, (experiment, space) in searches.items()
    ]
    journals = {cell.name: str(directory / "search" / f"{cell.name}.journal") for cell in cells}
    (directory / "search").mkdir(parents=True, exist_ok=True)
    return run_cells(cells, _search, directory, files, journals, workers=workers, quiet=quiet)


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """An experiment with some settings changed, each told by its path.

    >>> from sparsehyper.experiments import DataConfig
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
    settings: dict[str, Any], files: dict[DataConfig, SharedTasks], journals: dict[str, str]
) -> dict[str, Any]:
    optuna = require("optuna", "study")
    journal = require("optuna.storages.journal", "study")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    experiment = Experiment.from_dict(settings["experiment"])
    space, path = settings["space"], journals[settings["name"]]
    tasks = files[experiment.data].load()
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal.JournalFileBackend(path)),
        study_name=settings["name"],
        direction="maximize",
        load_if_exists=True,
    )
    recorded = study.user_attrs.get("settings", settings)
    check_same(f"the search in {path}", recorded, settings, ())
    study.set_user_attr("settings", settings)

    def objective(trial: Any) -> float:
        chosen = with_settings(experiment, {p: _draw(trial, p, space[p]) for p in space})
        try:
            _, result = trained(chosen, tasks)
        except NonFiniteError:
            return 0.0
        return result.best.accuracy

    complete = (optuna.trial.TrialState.COMPLETE,)
    while (done := len(study.get_trials(states=complete))) < settings["trials"]:
        # Of the number of the trial, so that a search that goes on draws no trial again.
        study.sampler = optuna.samplers.TPESampler(seed=done, n_startup_trials=4)
        if done == 0 and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
            own = {p: experiment.training.lr if p == LR else space[p][0] for p in space}
            study.enqueue_trial(own)
        study.optimize(objective, n_trials=1)
    trials = [
        {"settings": t.params, "validation": t.value, "seconds": t.duration.total_seconds()}
        for t in study.get_trials(states=complete)
    ]
    best = max(trials, key=lambda trial: trial["validation"])
    return {
        "settings_found": best["settings"],
        "validation": best["validation"],
        "trials": trials,
        "seconds": sum(trial["seconds"] for trial in trials),
    }


def _draw(trial: Any, path: str, choices: list[Any]) -> Any:
    if path == LR:
        return trial.suggest_float(path, *choices, log=True)
    return trial.suggest_categorical(path, choices)
