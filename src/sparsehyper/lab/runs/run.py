"""One training run in its directory: start it, resume it and evaluate it.

``config.json`` of a run directory holds the experiment and, under ``resolved``, what `resolve`
derives from it; ``result.json`` holds what `run_experiment` returns. `sparsehyper.training.Run`
describes the other files.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_choice
from sparsehyper._util.text import listed
from sparsehyper.lab.data import TaskSet
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.config import Experiment, up_to_date
from sparsehyper.lab.runs.loading import (
    MAY_DIFFER,
    LoadedRun,
    check_fingerprint,
    check_run,
    finished_result,
    load_run,
    recorded_tasks,
)
from sparsehyper.lab.runs.profiles import make_profiles, write_profiles
from sparsehyper.lab.runs.setup import (
    build_model,
    load_tasks,
    make_batches,
    read_new_tasks,
    resolve,
)
from sparsehyper.lab.runs.task_list import is_adapted
from sparsehyper.training import Evaluation, Processes, Run, evaluate, processes, train
from sparsehyper.training.checkpoint import open_checkpoint
from sparsehyper.training.directory import read_config
from sparsehyper.training.graphs import check_recordable
from sparsehyper.training.parallel import check_shardable
from sparsehyper.training.recorder import check_tracker
from sparsehyper.training.sources import ByTask

SPLITS = ("train", "val", "test")
_BATCH = 500  # images at a time


def run_experiment(
    experiment: Experiment,
    directory: str | PathLike[str],
    *,
    tasks: TaskSet | None = None,
    data_dir: str | PathLike[str] | None = None,
    resume: bool = False,
    command: str | None = None,
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
        command: the command that was given, to keep with the result.
        quiet: show no progress.

    Returns:
        The content of ``result.json``: ``experiment`` (`Experiment.to_dict`), ``training``
        (`TrainResult.to_dict`), ``test`` (`Evaluation.to_dict`), and of how it was made ``date``,
        ``command`` and ``machine`` (as `machine`).

    Raises:
        FileExistsError: ``directory`` exists and is not empty, without ``resume``.
        FileNotFoundError: there is no run to resume.
        ValueError: the run has another experiment or other data.
        NonFiniteError, Interrupted, CheckpointError: as `sparsehyper.training.train`.
    """
    path = Path(directory)
    if tasks is None:
        known = recorded_tasks(path) if resume else None
        tasks = load_tasks(experiment.data, data_dir, known=known)
    model = build_model(experiment, tasks)
    here = processes(experiment.training.device)
    if experiment.training.cuda_graphs:
        check_recordable(model, here)  # before there is a run
    if experiment.training.shard:
        check_shardable(model)
    check_tracker(experiment.training.log_with, has_run=True)
    tasks = tasks.to(here.device)
    batches = make_batches(experiment, tasks, shard=(here.rank, here.count))
    config = {**experiment.to_dict(), "resolved": resolve(tasks, model)}
    if resume:
        _check_trained(path)
        check_run(path, config)
        finished = finished_result(path, experiment)
        if finished is not None:
            recorded = read_config(path)
            if recorded["config"]["data"]["source"] != config["data"]["source"]:
                with Run.open(path, config, may_differ=MAY_DIFFER, update=up_to_date) as moved:
                    moved.record_config()  # where the data are now
            with open_checkpoint(path, "best", recorded["run"]):
                return finished  # its checkpoint is intact
        run = Run.open(path, config, may_differ=MAY_DIFFER, update=up_to_date)
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
            examples=tasks.train,
            variance=tasks.variance,
            run=run,
            quiet=quiet,
        )
        test = _evaluate(experiment, model, tasks, "test", here)
        if here.is_main and is_by_task(model) and tasks.columns is None:
            with open_checkpoint(path, "best", read_config(path)["run"]) as best:
                write_profiles(path, make_profiles(model, tasks), best.id)
        result = {
            "experiment": experiment.to_dict(),
            "training": training.to_dict(),
            "test": test.to_dict(),
            "date": date.today().isoformat(),
            "command": command,
            "machine": machine(),
        }
        run.write_result(result)
    return result


def evaluate_run(
    directory: str | PathLike[str],
    *,
    split: str = "test",
    source: str | None = None,
    added: str | PathLike[str] | None = None,
    resize: bool = False,
    data_dir: str | PathLike[str] | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
) -> Evaluation:
    """Evaluate the best model of a run: on its own images, or on a folder with those of tasks.

    Args:
        directory: directory of the run, finished or not, adapted or not.
        split: ``"train"``, ``"val"`` or ``"test"``.
        source: the run's folder of images, if it has moved. Tasks that were added to a run have no
            images in it; a warning names them.
        added: a folder ``<task>/<class>/*.png`` with images of some of the tasks, such as those
            that were added, with or without ``train/`` and ``test/`` above, and ``val/``; these
            alone are evaluated. Without those folders, all images are its test images. For a run
            of a table, a table.
        resize: resize images of ``added`` of other sizes than the model takes.
        data_dir: folder of the named data sets' files.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.

    Raises:
        KeyError, ValueError: an unknown split, other data than the run was trained on, or a
            folder with tasks, classes or images that are not the run's, or none of the split.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`.
    """
    check_choice("split", split, SPLITS)
    loaded, here = load_run(directory, trust=trust), processes(device)
    if added is not None:
        if source is not None:
            raise ValueError(
                f"`source` is for the data of the run, and those of `added` are evaluated alone; "
                f"got {source!r}"
            )
        return _evaluate_folder(loaded, Path(added), split, here, resize=resize)
    if resize:
        raise ValueError("`resize` is for images of `added`; those of the run have its own size")
    experiment = loaded.experiment
    data = experiment.data if source is None else replace(experiment.data, source=source)
    tasks = load_tasks(data, data_dir, known=recorded_tasks(loaded.directory))
    check_fingerprint(Path(directory), loaded.tasks.fingerprint, tasks.fingerprint)
    if not is_adapted(loaded.directory):
        return _evaluate(
            experiment, loaded.model.to(here.device), tasks.to(here.device), split, here
        )
    entries = loaded.task_list.entries
    if new := [entry.name for entry in entries if entry.row is None]:
        holder = "a table" if data.is_table else "a folder"
        warnings.warn(
            f"tasks that were added are not evaluated: {listed(new)}; give {holder} with their "
            f"{data.samples} as `added`",
            stacklevel=2,
        )
    batches = {
        entry.name: list(getattr(tasks, split).batches(entry.row, _BATCH))
        for entry in entries
        if entry.row is not None
    }
    pairs = {name: [(x, y) for x, y, _ in own] for name, own in batches.items()}
    return _evaluate_tasks(loaded, pairs, here, tasks.variance)


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
        variance=tasks.variance,
        processes=here,
    )


def _evaluate_folder(
    loaded: LoadedRun, folder: Path, split: str, here: Processes, *, resize: bool
) -> Evaluation:
    info = loaded.tasks
    resize = resize or loaded.experiment.data.image_size is not None
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for one in read_new_tasks(info, folder, resize=resize):
        known = loaded.task_list.entry(one.name).classes
        loaded.check_plain(one.name)
        if unknown := set(one.classes) - set(known):
            raise ValueError(
                f"task {one.name!r} of {folder} has the class {min(unknown)!r}; the run knows its "
                f"classes {listed(known)}"
            )
        parts = {"train": one.train, "val": one.val, "test": one.test or one.train}
        images = parts[split]
        if images is None and info.columns is not None:
            raise ValueError(
                f"`split` must be 'test' for {folder}, all of whose rows are tested on, got 'val'"
            )
        if images is None:
            raise ValueError(f"`split` 'val' needs a folder val/ in {folder}, which has none")
        x, y = info.normalise(images.pixels), images.labels
        if not info.are_numbers:
            y = torch.tensor([known.index(name) for name in one.classes])[y]
        found[one.name] = list(zip(x.split(_BATCH), y.split(_BATCH), strict=True))
    return _evaluate_tasks(loaded, found, here)


def _evaluate_tasks(
    loaded: LoadedRun,
    batches: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    here: Processes,
    variance: float | None = None,
) -> Evaluation:
    """Accuracy, loss and entropy of the ordinary models of some tasks."""
    names, info = tuple(batches), loaded.tasks
    n_classes = [len(loaded.task_list.entry(name).classes) for name in names]
    data = ByTask(((x, y, name) for name, own in batches.items() for x, y in own), names)
    models = _OrdinaryModels(loaded, names)
    return evaluate(
        models,
        data,
        names=names,
        n_classes=None if info.are_numbers else n_classes,
        variance=variance,
        processes=here,
    )


class _OrdinaryModels(nn.Module):
    """The ordinary models of tasks as one model for all; it makes and keeps one at a time."""

    def __init__(self, loaded: LoadedRun, names: Sequence[str]) -> None:
        super().__init__()
        self._loaded, self._names = loaded, names
        self._made: tuple[int, nn.Module] | None = None

    def forward(self, x: Tensor, task: int) -> Tensor:
        """The outputs of a task's model."""
        if self._made is None or self._made[0] != task:
            self._made = task, self._loaded.materialize(self._names[task]).to(x.device)
        outputs: Tensor = self._made[1](x)
        return outputs


def _check_trained(directory: Path) -> None:
    if is_adapted(directory):
        raise ValueError(
            f"the run in {directory} has other tasks than it was trained on; train the run that "
            "it came from"
        )
