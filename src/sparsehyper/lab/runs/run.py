"""One training run in its directory: start it, resume it, load it and evaluate it.

``config.json`` of a run directory holds the experiment and, under ``resolved``, what `resolve`
derives from it; ``result.json`` holds what `run_experiment` returns. `sparsehyper.training.Run`
describes the other files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sparsehyper._util.checks import check_choice
from sparsehyper._util.files import check_absent, parse_json, read_file
from sparsehyper.analysis import nearest_vectors, task_embeddings
from sparsehyper.lab.data import Split, TaskSet, parse_tasks
from sparsehyper.lab.runs.adapted import (
    TaskList,
    fit_tasks,
    is_adapted,
    sharing_weights,
    write_tasks,
)
from sparsehyper.lab.runs.config import Experiment
from sparsehyper.lab.runs.setup import (
    TaskInfo,
    build_model,
    load_tasks,
    make_batches,
    resolve,
)
from sparsehyper.lab.runs.targets import check_trusted
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training import (
    CheckpointError,
    Evaluation,
    Processes,
    Run,
    evaluate,
    processes,
    train,
)
from sparsehyper.training.checkpoint import open_checkpoint
from sparsehyper.training.run import check_same, json_ready, read_config

SPLITS = ("train", "val", "test")

# Settings that may change when a run is resumed: the steps already made do not depend on them. A
# folder of images may have moved; a fingerprint identifies its content.
MAY_DIFFER = ("training.steps", "training.device", "data.source")

# Errors that settings from a file may raise if this library did not write them.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class LoadedRun(NamedTuple):
    """A run, read by `load_run`."""

    experiment: Experiment
    tasks: TaskInfo
    model: nn.Module  # in evaluation mode
    task_list: TaskList
    digests: str  # SHA256SUMS of the checkpoint
    directory: Path

    def hypernetwork(self) -> HyperNetwork:
        """The model; raises ``ValueError`` if it is a baseline."""
        if not isinstance(self.model, HyperNetwork):
            raise ValueError(
                f"`directory` {self.directory} holds the baseline {type(self.model).__name__}; "
                "this needs a hypernetwork"
            )
        return self.model

    def altered_by(self, task: str) -> str | None:
        """How the images of a task were altered, such as ``permuted:10``; None if they were not."""
        (entry,) = (e for e in self.task_list.entries if e.name == task)
        made = self.experiment.data.tasks
        if entry.row is None or made is None or isinstance(parse_tasks(made), Split):
            return None
        return made

    def check_plain(self, task: str) -> None:
        """Raise ``ValueError`` if a task's images were altered."""
        if made := self.altered_by(task):
            raise ValueError(
                f"`task` {task!r} was trained on images altered by {made!r}, which image files are "
                "not; export its model, and alter its input in the same way"
            )

    def materialize(self, task: str) -> nn.Module:
        """The ordinary module of a task, with its tuned parameters, in evaluation mode."""
        module = self.hypernetwork().materialize(task)
        tuned = self.task_list.tuned().get(task, {})
        module.load_state_dict(tuned, strict=False)
        return module.eval()


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


def check_run(
    directory: str | PathLike[str],
    config: Mapping[str, Any],
    *,
    may_differ: Collection[str] = MAY_DIFFER,
) -> None:
    """Check that the run in ``directory`` has this configuration; nothing is changed.

    Args:
        directory: directory of the run.
        config: an `Experiment.to_dict`, with what `resolve` returns under ``"resolved"``.
        may_differ: dotted keys that may differ.

    Raises:
        FileNotFoundError: there is no run in ``directory``.
        ValueError: it has another experiment or other data; the message names the setting.
    """
    path = Path(directory)
    recorded = _read_config(path)
    try:
        found = recorded["resolved"]["tasks"]["fingerprint"]
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    check_fingerprint(path, found, config["resolved"]["tasks"]["fingerprint"])
    check_same(f"the run in {path}", recorded, json_ready(config), may_differ)


def read_experiment(directory: str | PathLike[str], *, trust: Collection[str] = ()) -> Experiment:
    """Read the experiment of a run, finished or not.

    Args:
        directory: directory of the run.
        trust: functions, as ``package.module:function``, that the run may name as its target. A
            run may come from anyone, and its target is imported and called to build the model.
            Built-in targets need no trust.

    Raises:
        FileNotFoundError: there is no run in ``directory``.
        CheckpointError: its ``config.json`` is damaged.
        UntrustedTargetError: its target is a function that ``trust`` does not contain.
    """
    path = Path(directory)
    config = _read_config(path)
    try:
        settings = {name: value for name, value in config.items() if name != "resolved"}
        experiment = Experiment.from_dict(settings)
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    check_trusted(experiment.target, trust, path / "config.json")
    return experiment


def finished_result(
    directory: str | PathLike[str], experiment: Experiment
) -> dict[str, Any] | None:
    """The result of `run_experiment` for this experiment; None if it has not finished yet.

    Raises:
        CheckpointError: ``result.json`` is damaged or belongs to another run.
    """
    result = Run(Path(directory)).read_result()
    if result is None:
        return None
    try:
        # A run that is resumed for more steps still has the result of fewer.
        steps = result["experiment"]["training"]["steps"]
    except _MALFORMED as error:
        raise CheckpointError(f"{Path(directory) / 'result.json'} is damaged: {error!r}") from error
    return result if steps == experiment.training.steps else None


def load_run(directory: str | PathLike[str], *, trust: Collection[str] = ()) -> LoadedRun:
    """Load the best model of a run so far: finished, in training or stopped. Needs no images.

    Args:
        directory: directory of the run.
        trust: as `read_experiment` takes it.

    Raises:
        FileNotFoundError: there is no run in ``directory``, or no checkpoint in it yet.
        CheckpointError: a file is damaged or belongs to another run.
        UntrustedTargetError: as `read_experiment`.
    """
    path = Path(directory)
    experiment = read_experiment(path, trust=trust)
    try:
        info = TaskInfo.from_dict(_read_config(path)["resolved"]["tasks"])
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    try:
        best = open_checkpoint(path, "best", read_config(path)["run"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`directory` {path} has no evaluated checkpoint yet; resume the run first"
        ) from None
    with best:
        try:
            model = build_model(experiment, info)
        except (TypeError, OverflowError, MemoryError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path / 'config.json'} describes a model that cannot be built: {reason}"
            ) from error
        best.read_weights(model)
    tasks = TaskList.read(path, info, best.digests)
    if is_adapted(path):
        tasks.apply(model, path)
        info = tasks.info(info)
    return LoadedRun(experiment, info, model.eval(), tasks, best.digests, path)


def adapt_run(
    directory: str | PathLike[str],
    out: str | PathLike[str],
    data: str | PathLike[str],
    *,
    resize: bool = False,
    device: str = "auto",
    trust: Collection[str] = (),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Fit new tasks to the best model of a run, and write a new run that has them too.

    Args:
        directory: directory of the run, which is left as it is.
        out: directory of the new run, which shares the weights of the old one.
        data: a folder ``<task>/<class>/*.png``, or with ``task`` ``<class>/*.png``; either with
            or without ``train/`` and ``test/`` above. Images in ``test/`` are only tested on.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.
        **settings: settings of `adapted.fit_tasks` and `fit_embeddings`.

    Returns:
        As `adapted.fit_tasks`.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`, or ``data`` is no
            folder.
        ValueError: the run is of a baseline, a name is already taken, or images or settings do not
            fit.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    model = loaded.hypernetwork().to(processes(device).device)
    resize = resize or loaded.experiment.data.image_size is not None
    with sharing_weights(Path(directory), Path(out), loaded.digests) as partial:
        tasks, rows = fit_tasks(
            model, loaded.tasks, loaded.task_list, data, resize=resize, **settings
        )
        write_tasks(partial, tasks, loaded.digests)
    return rows


def change_tasks(
    directory: str | PathLike[str],
    out: str | PathLike[str],
    *,
    rename: tuple[str, str] | None = None,
    remove: Sequence[str] = (),
    trust: Collection[str] = (),
) -> None:
    """Write a new run with a task renamed or some tasks removed.

    Args:
        directory: directory of the run, which is left as it is.
        out: directory of the new run, which shares the weights of the old one.
        rename: a task's name and its new name.
        remove: tasks to leave out.
        trust: as `read_experiment` takes it.

    Raises:
        FileExistsError: ``out`` exists.
        KeyError: an unknown task.
        ValueError: the new name is already taken, or the only task would be removed.
    """
    check_absent("out", Path(out))
    loaded = load_run(directory, trust=trust)
    loaded.hypernetwork()
    tasks = loaded.task_list
    if rename is not None:
        tasks = tasks.rename(*rename)
    for name in remove:
        tasks = tasks.remove(name)
    with sharing_weights(Path(directory), Path(out), loaded.digests) as partial:
        write_tasks(partial, tasks, loaded.digests)


def describe_tasks(
    directory: str | PathLike[str], *, trust: Collection[str] = ()
) -> list[dict[str, Any]]:
    """List the tasks of a run.

    Args:
        directory: directory of the run.
        trust: as `read_experiment` takes it.

    Returns:
        One row per task: its name as ``task``, its ``classes``, its ``origin`` (``"trained"``,
        ``"embedding"``, or ``"embedding + "`` and what was tuned), and the name of the ``nearest``
        other task with the ``cosine`` of the angle between their normalised embeddings.
    """
    loaded = load_run(directory, trust=trust)
    nearest = nearest_tasks(loaded.hypernetwork())
    return [
        {
            "task": entry.name,
            "classes": list(entry.classes),
            "origin": entry.origin,
            "nearest": other,
            "cosine": cosine,
        }
        for entry, (other, cosine) in zip(loaded.task_list.entries, nearest, strict=True)
    ]


def nearest_tasks(model: HyperNetwork) -> list[tuple[str, float]] | list[tuple[None, None]]:
    """For each task the task with the most similar embedding, and the cosine of the two.

    Embeddings are compared as the generator sees them. Both values are None for a lone task.
    """
    names = model.task_names
    if len(names) == 1:
        return [(None, None)]
    indices, cosines = nearest_vectors(task_embeddings(model))
    return [(names[i], cosine) for i, cosine in zip(indices.tolist(), cosines.tolist(), strict=True)]


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
    return _evaluate(experiment, model.to(here.device), tasks, split, here)


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


def check_fingerprint(directory: Path, recorded: str, found: str) -> None:
    """Raise ``ValueError`` if the data of a run have changed since it was started."""
    if recorded != found:
        raise ValueError(
            f"the data have changed since the run in {directory} began: their fingerprint was "
            f"{recorded!r} and is {found!r}; restore them, or start a new run"
        )


def _read_config(directory: Path) -> dict[str, Any]:
    config = read_config(directory)["config"]
    if "resolved" not in config:
        raise CheckpointError(
            f"{directory / 'config.json'} is damaged: it has no resolved configuration"
        )
    return config


def _damaged(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{directory / 'config.json'} is damaged: {error!r}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises ``CheckpointError`` if it is damaged."""
    value = parse_json(read_file(path), path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold an object")
    return value
