"""One training run in its directory: start it, resume it and evaluate it.

``config.json`` of a run directory holds the experiment and, under ``resolved``, what `resolve`
derives from it; ``result.json`` holds what `run_experiment` returns. `sparsehyper.training.Run`
describes the other files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from sparsehyper._util.checks import check_choice
from sparsehyper.lab.data import TaskSet
from sparsehyper.lab.runs.config import Experiment
from sparsehyper.lab.runs.loading import (
    MAY_DIFFER,
    check_fingerprint,
    check_run,
    finished_result,
    load_run,
)
from sparsehyper.lab.runs.setup import build_model, load_tasks, make_batches, resolve
from sparsehyper.lab.runs.task_list import is_adapted
from sparsehyper.training import Evaluation, Processes, Run, evaluate, processes, train
from sparsehyper.training.checkpoint import open_checkpoint
from sparsehyper.training.directory import read_config
from sparsehyper.training.graphs import check_recordable

SPLITS = ("train", "val", "test")


def run_experiment(
    experiment: Experiment,
    directory: str | PathLike[str],
    *,
    tasks: TaskSet | None = None,
    data_dir: str | PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, then evaluate the best model once on the test images.

    Args:
        experiment: the experiment.
        directory: directory of the run; a new one, or with ``resume`` that of a run of this
            experiment.
        tasks: the experiment's tasks, if they are loaded already.
        data_dir: folder of the named data sets' files.
        resume: continue the run from its last checkpoint. A finished run is left as it is. The
            experiment must be the one that was started, except for the settings `MAY_DIFFER`.
        quiet: show no progress.

    Returns:
        The content of ``result.json``: ``experiment`` (`Experiment.to_dict`), ``training``
        (`TrainResult.to_dict`) and ``test`` (`Evaluation.to_dict`).

    Raises:
        FileExistsError: ``directory`` exists and is not empty, without ``resume``.
        FileNotFoundError: there is no run to resume.
        ValueError: the run has another experiment or other data.
        NonFiniteError, Interrupted, CheckpointError: as `sparsehyper.training.train`.
    """
    path = Path(directory)
    tasks = tasks or load_tasks(experiment.data, data_dir)
    model = build_model(experiment, tasks)
    here = processes(experiment.training.device)
    if experiment.training.cuda_graphs:
        check_recordable(model, here)  # before there is a run
    tasks = tasks.to(here.device)
    batches = make_batches(experiment, tasks, shard=(here.rank, here.count))
    config = {**experiment.to_dict(), "resolved": resolve(tasks, model)}
    if resume:
        _check_trained(path)
        check_run(path, config)
        finished = finished_result(path, experiment)
        if finished is not None:
            with open_checkpoint(path, "best", read_config(path)["run"]):
                return finished  # its checkpoint is intact
        run = Run.open(path, config, may_differ=MAY_DIFFER)
    else:
        run = Run.create(path, config)
    with run:
        training = train(
            model,
            batches,
            tasks.val,
            experiment.training,
            names=tasks.names,
            n_classes=tasks.n_classes,
            run=run,
            quiet=quiet,
        )
        test = _evaluate(experiment, model, tasks, "test", here)
        result = {
            "experiment": experiment.to_dict(),
            "training": training.to_dict(),
            "test": test.to_dict(),
        }
        run.write_result(result)
    return result


def evaluate_run(
    directory: str | PathLike[str],
    *,
    split: str = "test",
    source: str | None = None,
    data_dir: str | PathLike[str] | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
) -> Evaluation:
    """Evaluate the best model of a run.

    Args:
        directory: directory of the run, finished or not.
        split: ``"train"``, ``"val"`` or ``"test"``.
        source: the run's folder of images, if it has moved.
        data_dir: folder of the named data sets' files.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.

    Raises:
        ValueError: an unknown split, or other data than the run was trained on.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`.
    """
    check_choice("split", split, SPLITS)
    _check_trained(Path(directory))
    experiment, info, model, *_ = load_run(directory, trust=trust)
    data = experiment.data if source is None else replace(experiment.data, source=source)
    tasks = load_tasks(data, data_dir)
    check_fingerprint(Path(directory), info.fingerprint, tasks.fingerprint)
    here = processes(device)
    return _evaluate(experiment, model.to(here.device), tasks.to(here.device), split, here)


def _evaluate(
    experiment: Experiment, model: nn.Module, tasks: TaskSet, split: str, here: Processes
) -> Evaluation:
    return evaluate(
        model,
        getattr(tasks, split),
        names=tasks.names,
        n_classes=tasks.n_classes,
        batch_size=experiment.training.eval_batch_size,
        precision=experiment.training.precision,
        processes=here,
    )


def _check_trained(directory: Path) -> None:
    if is_adapted(directory):
        raise ValueError(
            f"the run in {directory} has other tasks than it was trained on; train and evaluate "
            "the run that it came from, and use `predict` here"
        )
