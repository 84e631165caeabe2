"""Several methods on the same tasks, over several seeds, at equal budgets.

Every method sees the same stream of batches for the same number of steps. A hypernetwork or a
shared trunk learns from every batch, an expert only from the batches of its own task.

==================================  ==============================================================
``runs/<method>-<budget>-<seed>/``  one run directory each; finished runs are never repeated
``results.json``                    the return value of `compare`, rewritten after every run
==================================  ==============================================================
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from sparsehyper._util.checks import check_integer
from sparsehyper._util.files import read_json, write_json
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import Chunked, Generator, Sparse
from sparsehyper.generators.base import BudgetError
from sparsehyper.lab.data import SharedTasks, TaskSet
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.baselines import BASELINES
from sparsehyper.lab.runs.config import GENERATED, Experiment, parse_method, up_to_date
from sparsehyper.lab.runs.loading import MAY_DIFFER, check_run, finished_result, recorded_tasks
from sparsehyper.lab.runs.run import run_experiment
from sparsehyper.lab.runs.setup import (
    fit_generator,
    load_tasks,
    make_batches,
    target_layout,
)
from sparsehyper.layout import count_numbers
from sparsehyper.training import Interrupted
from sparsehyper.training.directory import check_same, json_ready, lock, read_config
from sparsehyper.training.isolation import ChildError, call_in_process, scratch

_FORMAT = 1

COMPARED = ("sparse", "chunked", "dense", *BASELINES)  # default methods

# Generators whose size a budget sets.
_SCALABLE = (Sparse, Chunked)

_MAY_DIFFER = tuple(key for key in MAY_DIFFER if key != "training.steps")
_TRAINABLE = "resolved.trainable_parameters"  # known once a run has built its model
_CHOICES = ("methods", "budgets", "seeds", "training.seed")


@dataclass(frozen=True, eq=False)
class _Entry:
    """One row of the table: a method at a budget."""

    method: str
    experiment: Experiment
    resolved: dict[str, Any]

    def name(self, seed: int) -> str:
        budget = self.experiment.budget
        parts = (self.method, *([] if budget is None else [f"{budget:g}N"]), str(seed))
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))

    def config(self, seed: int) -> dict[str, Any]:
        return {**self.experiment.with_seed(seed).to_dict(), "resolved": self.resolved}


def compare(
    experiment: Experiment,
    directory: str | PathLike[str],
    *,
    methods: Sequence[str] = COMPARED,
    budgets: Sequence[float] = (4.0,),
    seeds: Sequence[int] = (0, 1, 2),
    data_dir: str | PathLike[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train every method with every seed, and compare them on the test images.

    Runs follow one another, each in a process of its own. A script must therefore not call this on
    import: its main module needs ``if __name__ == "__main__":``. Called again with the same
    settings, it continues where it stopped.

    Args:
        experiment: data, target and training of all runs; its method, budget and seed are
            replaced.
        directory: directory for all results; new, or that of the same comparison.
        methods: methods as `parse_method` takes them, such as ``"sparse:topology=local"``.
        budgets: budgets of sparse and chunked generators, as `Experiment` takes them; if empty,
            these keep the size that their settings give. Other methods have one size.
        seeds: seeds of the runs. All see the same split of the images.
        data_dir: folder of the named data sets' files.
        quiet: show no progress.

    Returns:
        A JSON-ready dict:

        - ``config``: the experiment, and ``methods``, ``budgets`` and ``seeds``;
        - ``score``: what every ``accuracy`` below is, ``"accuracy"`` or ``"R²"``; results from
          before there were numbers to predict lack it, and are of accuracies;
        - ``tasks``, ``numel`` (N, parameters of one target) and ``machine``;
        - ``rows``, one per method and budget: ``method``, ``budget``, ``trainable_parameters``,
          ``parameters_per_target_parameter``, ``seeds``, test ``accuracy`` (mean over tasks, then
          ``mean`` and ``sd`` over seeds; ``sd`` is None for one seed), ``worst_task`` (the lowest
          mean over seeds, and its ``name``), ``accuracies`` (per seed and task), ``steps`` (mean
          over seeds), ``step_ms`` (median) and ``peak_memory_mb`` (median over seeds; on the CPU
          that of the whole process: interpreter, PyTorch, images read, model and optimiser; on an
          accelerator that of its allocator);
        - ``skipped``: methods that cannot meet a budget, each with the ``reason``;
        - ``failures``: runs that failed, each with the ``error``. The other runs continue.

    Raises:
        ValueError: a setting is invalid, or ``directory`` holds another comparison.
        RunInUseError: another process is writing to ``directory``.
        Interrupted: Ctrl-C or SIGTERM; the current run was checkpointed first.
    """
    for argument, values in (("methods", methods), ("budgets", budgets), ("seeds", seeds)):
        if isinstance(values, str) or len(set(values)) < len(values):
            raise ValueError(f"`{argument}` must be a list of different ones, got {values!r}")
    for seed in seeds:
        check_integer("seeds", seed, minimum=0)
    out = Path(directory)
    begun = next(out.glob("runs/*/config.json"), None)
    known = None if begun is None else recorded_tasks(begun.parent)
    tasks = load_tasks(experiment.data, data_dir, known=known)
    make_batches(experiment, tasks)  # checks the settings before anything runs
    entries, skipped = _plan(experiment, tasks, methods, budgets)
    if not entries or not seeds:
        raise ValueError(f"there is nothing to run: `seeds` is {seeds!r}, skipped is {skipped}")
    jobs = [(entry, seed, out / "runs" / entry.name(seed)) for seed in seeds for entry in entries]
    for entry, seed, path in jobs:
        if (path / "config.json").exists():
            check_run(path, entry.config(seed), may_differ=(*_MAY_DIFFER, _TRAINABLE))

    shared = {k: v for k, v in experiment.to_dict().items() if k not in ("method", "budget")}
    choices = {"methods": list(methods), "budgets": list(budgets), "seeds": list(seeds)}
    results: dict[str, Any] = {
        "format": _FORMAT,
        "config": {**shared, **choices},
        "score": tasks.score,
        "tasks": {"names": list(tasks.names), "fingerprint": tasks.fingerprint},
        "numel": entries[0].resolved["numel"],
        "machine": machine(),
        "rows": [],
        "skipped": skipped,
        "failures": [],
    }
    _check_results(out / "results.json", results)
    out.mkdir(parents=True, exist_ok=True)
    finished: dict[_Entry, dict[int, dict[str, Any]]] = {entry: {} for entry in entries}
    with ExitStack() as stack:
        stack.callback(lock(out).release)
        images = SharedTasks.write(tasks, stack.enter_context(scratch(out)) / "tasks.pt")
        for number, (entry, seed, path) in enumerate(jobs, 1):
            if not quiet:
                print(f"[{number}/{len(jobs)}] {path.name}", file=sys.stderr, flush=True)
            seeded = entry.experiment.with_seed(seed)
            try:
                finished[entry][seed] = finished_result(path, seeded) or call_in_process(
                    _run, images, seeded, path, quiet
                )
            except ChildError as error:
                failure = {"method": entry.method, "budget": entry.experiment.budget}
                results["failures"].append({**failure, "seed": seed, "error": str(error)})
            except Interrupted:
                again = f"stopped; the same comparison in {out} goes on where it was"
                raise Interrupted(again, 0) from None
            results["rows"] = [_row(entry, runs, out) for entry, runs in finished.items() if runs]
            write_json(out / "results.json", results)
    return results


def _plan(
    experiment: Experiment,
    tasks: TaskSet,
    methods: Sequence[str],
    budgets: Sequence[float],
) -> tuple[list[_Entry], list[dict[str, Any]]]:
    """The rows of the table, and the methods that cannot meet a budget."""
    layout = target_layout(experiment, tasks)
    whole = layout  # that of baselines, which have their own last layers
    if experiment.head != GENERATED:
        whole = target_layout(replace(experiment, head=GENERATED, base="learned"), tasks)
    of_tasks = tasks.to_dict()
    entries: list[_Entry] = []
    skipped: list[dict[str, Any]] = []
    for text in methods:
        method = parse_method(text)
        at: list[float | None] = [*budgets] if isinstance(method, _SCALABLE) else []
        for budget in at or [None]:
            generated = isinstance(method, Generator)
            conditioner = experiment.conditioner if generated else TaskEmbedding.kind
            chosen = replace(experiment, method=method, budget=budget, conditioner=conditioner)
            generator = None
            try:
                if isinstance(method, Generator):
                    generator = fit_generator(chosen, layout).to_config()
            except BudgetError as error:
                skipped.append({"method": text, "budget": budget, "reason": str(error)})
            else:
                resolved = {
                    "tasks": of_tasks,
                    "numel": count_numbers(layout if generated else whole),
                    "generator": generator,
                }
                entries.append(_Entry(text, chosen, resolved))
    return entries, skipped


def _check_results(path: Path, results: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the results of other data or settings would be overwritten."""
    if path.exists():
        recorded, given = (
            {
                **up_to_date(r.get("config", {})),
                "fingerprint": r.get("tasks", {}).get("fingerprint"),
            }
            for r in (read_json(path), results)
        )
        check_same(
            f"the comparison in {path.parent}",
            recorded,
            json_ready(given),
            (*_MAY_DIFFER, *_CHOICES),
        )


def _run(
    images: SharedTasks, experiment: Experiment, directory: Path, quiet: bool
) -> dict[str, Any]:
    tasks = images.load()
    resume = (directory / "config.json").exists()
    return run_experiment(experiment, directory, tasks=tasks, resume=resume, quiet=quiet)


def _row(entry: _Entry, runs: dict[int, dict[str, Any]], out: Path) -> dict[str, Any]:
    config = read_config(out / "runs" / entry.name(next(iter(runs))))["config"]
    trainable = config["resolved"]["trainable_parameters"]
    tests = [run["test"] for run in runs.values()]
    trainings = [run["training"] for run in runs.values()]
    accuracies = [test["accuracy"] for test in tests]
    by_task = {
        name: statistics.fmean(test["accuracies"][name] for test in tests)
        for name in tests[0]["accuracies"]
    }
    worst = min(by_task, key=lambda name: by_task[name])
    timed = [t["step_ms"] for t in trainings if t["step_ms"] is not None]
    return {
        "method": entry.method,
        "budget": entry.experiment.budget,
        "trainable_parameters": trainable,
        "parameters_per_target_parameter": trainable / entry.resolved["numel"],
        "seeds": list(runs),
        "accuracy": {
            "mean": statistics.fmean(accuracies),
            "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        },
        "worst_task": {"name": worst, "accuracy": by_task[worst]},
        "accuracies": {str(seed): run["test"]["accuracies"] for seed, run in runs.items()},
        "steps": statistics.fmean(t["steps"] for t in trainings),
        "step_ms": statistics.median(timed) if timed else None,
        "peak_memory_mb": statistics.median(t["peak_memory"] for t in trainings) / 1e6,
    }
