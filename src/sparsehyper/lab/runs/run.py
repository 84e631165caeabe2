"""One training run in its directory: start it, go on with it, load and evaluate what came out.

``config.json`` of a run directory is the experiment and, under ``resolved``, what follows from it;
``result.json`` is what `run_experiment` returns. `sparsehyper.training.Run` describes the rest.
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

# What the steps already made do not depend on. A folder may move: its fingerprint tells.
MAY_DIFFER = ("training.steps", "training.device", "data.source")


# The errors that settings from a file may raise if this library did not write them.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class LoadedRun(NamedTuple):
    """What `load_run` read."""

    experiment: Experiment
    tasks: TaskInfo
    model: nn.Module
    task_list: TaskList
    digests: str  # of the checkpoint's files
    directory: Path

    def hypernetwork(self) -> HyperNetwork:
        """The model, if it is one; ``ValueError`` if not."""
        if not isinstance(self.model, HyperNetwork):
            raise ValueError(
                f"`directory` {self.directory} holds no hypernetwork but the baseline "
                f"{type(self.model).__name__}; this is for hypernetworks"
            )
        return self.model

    def altered_by(self, task: str) -> str | None:
        """What the images of a task went through before training, such as ``permuted:10``."""
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
                "not; export its model, and alter what it is given likewise"
            )

    def materialize(self, task: str) -> nn.Module:
        """The ordinary module of a task, with what was tuned of it, in evaluation mode."""
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
    """Train, then evaluate the best model on the test images, once.

    Args:
        experiment: what to run.
        directory: of the run; a new one, or with ``resume`` that of a run of this experiment.
        tasks: the experiment's tasks if they are loaded already.
        data_dir: where the files of named sources are.
        resume: go on with the run. A finished one is left as it is.
        quiet: show no progress.

    Returns:
        What ``result.json`` then holds: ``experiment`` (`Experiment.to_dict`), ``training``
        (`TrainResult.to_dict`) and ``test`` (`Evaluation.to_dict`).

    Raises:
        FileExistsError: ``directory`` is in use, without ``resume``.
        FileNotFoundError: there is no run to resume.
        ValueError: the run is of another experiment or of other data.
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
                return finished  # what it was reached with is whole
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
            n_classes=[len(names) for names in tasks.classes],
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
    """Check that the run in ``directory`` is of this configuration; nothing is changed.

    Args:
        directory: of the run.
        config: an `Experiment.to_dict`, with what `resolve` returns under ``"resolved"``.
        may_differ: dotted keys that need not be the same.

    Raises:
        FileNotFoundError: there is no run in ``directory``.
        ValueError: it is of another experiment or of other data; the message names the setting.
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
    """The experiment of a run, finished or not.

    Args:
        directory: of the run.
        trust: functions, as ``package.module:function``, that the run may name as its target. A
            run may come from anyone, and its target is imported and called when its model is made;
            targets of our own need no trust.

    Raises:
        FileNotFoundError: there is no run in ``directory``.
        CheckpointError: its ``config.json`` is damaged.
        UntrustedTargetError: its target is a function that is not among those of ``trust``.
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
    """What `run_experiment` returned for this experiment; None if it has not finished yet.

    Raises:
        CheckpointError: ``result.json`` is damaged, or of another run.
    """
    result = Run(Path(directory)).read_result()
    if result is None:
        return None
    try:
        # A run that goes on for more steps still has the result of fewer.
        steps = result["experiment"]["training"]["steps"]
    except _MALFORMED as error:
        raise CheckpointError(f"{Path(directory) / 'result.json'} is damaged: {error!r}") from error
    return result if steps == experiment.training.steps else None


def load_run(directory: str | PathLike[str], *, trust: Collection[str] = ()) -> LoadedRun:
    """The best model of a run so far, finished, being trained, or stopped; without its data.

    Args:
        directory: of the run.
        trust: as `read_experiment` takes it.

    Raises:
        FileNotFoundError: there is no run in ``directory``, or no checkpoint in it yet.
        CheckpointError: a file is damaged, or of another run.
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
            f"`directory` {path} has no checkpoint yet that was evaluated; resume the run first"
        ) from None
    with best:
        try:
            model = build_model(experiment, info)
        except (TypeError, OverflowError, MemoryError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path / 'config.json'} describes a model that cannot be made: {reason}"
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
    """Fit new tasks to the best model of a run, and write a new run that knows them too.

    Args:
        directory: of the run, which is left as it is.
        out: the new run; it shares the old one's weights.
        data: a folder ``<task>/<class>/*.png``, or with ``task`` ``<class>/*.png``; either with
            or without ``train/`` and ``test/`` above. All but ``test/`` is learned from.
        resize: resize images to the size that the model takes. Always done for a run whose own
            images were resized.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.
        **settings: as `adapted.fit_tasks` and `fit_embeddings` take them.

    Returns:
        As `adapted.fit_tasks`.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, CheckpointError, UntrustedTargetError: as `load_run`, or ``data`` is no
            folder.
        ValueError: the run holds no hypernetwork, a name that is a task already, images or
            settings that do not fit.
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
    """Write a new run in which a task has another name, or some are gone; it shares the weights.

    Args:
        directory: of the run, which is left as it is.
        out: the new run.
        rename: a task's name and its new name.
        remove: tasks to leave out.
        trust: as `read_experiment` takes it.

    Raises:
        FileExistsError: ``out`` exists.
        KeyError: an unknown task.
        ValueError: a new name that is a task already, or the removal of the only task.
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
    """The tasks of a run.

    Args:
        directory: of the run.
        trust: as `read_experiment` takes it.

    Returns:
        For each its name as ``task``, its ``classes``, its ``origin`` (``"trained"``,
        ``"embedding"``, or ``"embedding + "`` and what was tuned), and the ``nearest`` other
        task's name with the ``cosine`` of the angle between the two normalised embeddings.
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
    """For each task the one of the most similar embedding, and the cosine of the two.

    Embeddings are compared as the generator sees them. Both are None for the only task.
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
        directory: of the run, finished or not.
        split: ``"train"``, ``"val"`` or ``"test"``.
        source: where the run's folder of images is now, if it has moved.
        data_dir: where the files of named sources are.
        device: ``"auto"`` or a device such as ``"cpu"``.
        trust: as `read_experiment` takes it.

    Raises:
        ValueError: an unknown split, or the data are not those the run was trained on.
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
        n_classes=[len(names) for names in tasks.classes],
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
    """Raise ValueError where a run's data are not those that it began with."""
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
    """An object from a file; ``CheckpointError`` if that is damaged."""
    value = parse_json(read_file(path), path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no object")
    return value
