"""The choice of hyperparameters: equally many trials for every method, judged on validation images.

A search is a cell of the study. While it runs, its trials are kept in a journal,
``search/<name>.jsonl``: a line of JSON with the settings of the search, then one for each trial. A
search that was stopped continues after the last of them. Once the searches are done their journals
are removed, as the cells hold the trials. The draws of a search follow from its name and the number
of the trial, so that no two searches draw the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from sparsehyper._util.extras import require
from sparsehyper._util.files import parse_json, read_file
from sparsehyper.generators.base import BudgetError
from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.runs.config import DataConfig, Experiment, up_to_date
from sparsehyper.lab.runs.setup import fit_generator, target_layout
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
_ROUNDS = 3  # in which ranges grow
_NEAR, _FURTHER = 1.5, 4.0  # factors: a learning rate near an end of its range, and the next end
_MOST_DRAWS = 1000  # for one that meets the budget


def run_searches(
    searches: Mapping[str, tuple[Experiment, Space]],
    trials: int,
    workspace: Workspace,
    until: Space | None = None,
) -> dict[str, dict[str, Any]]:
    """Run the searches that have not been completed yet.

    The first trial has the experiment's own settings if they meet its budget; the tree-structured
    Parzen estimator chooses the others. What cannot meet the budget is drawn again.

    Args:
        searches: an experiment and its search space, by name of the cell.
        trials: number of trials of each search; with ``until``, of each setting that it searches.
        workspace: the study's workspace.
        until: how far ranges may grow: the bounds of a learning rate, all choices of other settings
            in their order. While the best trial is at an end of a range, the range is extended
            there, and one more trial for each setting is made, for at most three rounds.

    Returns:
        By name: ``settings_found``, by path; the ``validation`` accuracy they reached; ``trials``,
        each with its settings, accuracy and seconds; the total ``seconds``; and with ``until``
        ``at_an_end``, the settings whose best value still is at an end of its range.

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
                "space": _listed(space),
                "trials": trials if until is None else trials * len(space),
                "name": name,
                **({} if until is None else {"until": _listed(until, space)}),
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
    experiment = Experiment.from_dict(settings["experiment"])
    tasks = files[experiment.data].load()
    layout = target_layout(experiment, tasks)
    path, name = journals[settings["name"]], settings["name"]
    recorded = _recorded_trials(path, settings)
    trials: list[dict[str, Any]] = []

    def meets_the_budget(chosen: dict[str, Any]) -> bool:
        one = with_settings(experiment, chosen)
        try:
            return one.budget is None or bool(fit_generator(one, layout))
        except BudgetError:
            return False

    def try_more(number: int, space: Space) -> dict[str, Any]:
        """Make trials until there are ``number``, and return the best."""
        while len(trials) < number:
            if len(trials) < len(recorded):
                trials.append(recorded[len(trials)])
                continue
            chosen = _draw(experiment, space, trials, meets_the_budget, name)
            trials.append(_try(with_settings(experiment, chosen), tasks, chosen))
            _append(path, trials[-1])
        return max(trials, key=lambda trial: trial["validation"])

    space, until = settings["space"], settings.get("until", {})
    best = try_more(settings["trials"], space)
    for _ in range(_ROUNDS):
        if (wider := _wider(space, until, best["settings"])) == space:
            break
        space = wider
        best = try_more(len(trials) + len(space), space)
    return {
        "settings_found": best["settings"],
        "validation": best["validation"],
        "trials": trials,
        "seconds": sum(trial["seconds"] for trial in trials),
        **({"at_an_end": _at_an_end(space, until, best["settings"])} if until else {}),
    }


def _draw(
    experiment: Experiment,
    space: Space,
    trials: list[dict[str, Any]],
    allowed: Callable[[dict[str, Any]], bool],
    name: str,
) -> dict[str, Any]:
    """Settings for the next trial."""
    if not trials:
        own = {path: _own(experiment, path, choices) for path, choices in space.items()}
        if allowed(own):
            return own
    optuna = require("optuna", "study")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = {p: _distribution(optuna.distributions, p, [*some]) for p, some in space.items()}
    known = [
        optuna.trial.create_trial(
            params=trial["settings"], value=trial["validation"], distributions=ranges
        )
        for trial in trials
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials(known)
    for attempt in range(_MOST_DRAWS):
        # a seed for each draw, so that a search that continues draws the same
        seed = crc32(f"{name} {len(trials)} {attempt}".encode())
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        asked = study.ask(ranges)
        chosen: dict[str, Any] = asked.params
        if allowed(chosen):
            return chosen
        study.tell(asked, 0.0)  # or it would be the first choice again
    raise RuntimeError(f"no draw of {name!r} meets the budget of {experiment.budget:g}")


def _own(experiment: Experiment, path: str, choices: Any) -> Any:
    """The experiment's value of a setting; the first choice if it is not among them."""
    part, _, name = path.rpartition(".")
    value = getattr(getattr(experiment, part) if part else experiment, name)
    return value if path == LR or value in choices else choices[0]


def _wider(space: Space, until: Space, best: Mapping[str, Any]) -> dict[str, Any]:
    """The ranges, extended at the ends where the best trial is."""
    wider = {path: list(choices) for path, choices in space.items()}
    for path, choices in until.items():
        low, high = (_is_at(end, path, space, best) for end in (0, -1))
        if path == LR:
            down, up = _FURTHER if low else 1, _FURTHER if high else 1
            wider[path] = [max(choices[0], space[path][0] / down)]
            wider[path] += [min(choices[1], space[path][1] * up)]
        else:
            first, last = choices.index(space[path][0]), choices.index(space[path][-1])
            wider[path] = list(choices[max(0, first - low) : last + high + 1])
    return wider


def _at_an_end(space: Space, until: Space, best: Mapping[str, Any]) -> list[str]:
    return [p for p in until if _is_at(0, p, space, best) or _is_at(-1, p, space, best)]


def _is_at(end: int, path: str, space: Space, best: Mapping[str, Any]) -> bool:
    """Whether the best value of a setting is at one end of its range, 0 or -1."""
    value, bound = best[path], space[path][end]
    if path != LR:
        return bool(value == bound)
    return bool(max(value / bound, bound / value) <= _NEAR)


def _listed(space: Space, of: Space | None = None) -> dict[str, list[Any]]:
    return {path: list(choices) for path, choices in space.items() if of is None or path in of}


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
        for trial in trials:
            if not _is_trial(trial, settings["space"]):
                raise _damaged(f"{path} is damaged: {str(trial)[:100]} is not a trial")
    if len(whole) < len(content):
        with _open_journal(path) as file:
            file.truncate(len(whole))
    if not whole:
        _append(path, settings)
    return trials


def _is_trial(value: Any, space: Space) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("settings"), dict)
        and value["settings"].keys() == space.keys()
        and all(isinstance(value.get(key), (int, float)) for key in ("validation", "seconds"))
    )


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
    flags |= getattr(os, "O_BINARY", 0)  # Windows
    return os.fdopen(os.open(path, flags, 0o666), "ab")
