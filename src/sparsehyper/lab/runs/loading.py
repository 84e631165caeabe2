"""A run, read from its directory: its experiment, its tasks, its best model and its result."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsehyper.conditioning import SupportSet, TaskEmbedding
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data import Alphabets, Split, TaskInfo, parse_tasks, prepared_by
from sparsehyper.lab.runs.baselines import Experts, SharedTrunk
from sparsehyper.lab.runs.conditioners import is_by_task
from sparsehyper.lab.runs.config import Experiment, up_to_date
from sparsehyper.lab.runs.fitted import trimmed_head
from sparsehyper.lab.runs.setup import build_model
from sparsehyper.lab.runs.targets import check_trusted
from sparsehyper.lab.runs.task_list import TaskList, is_adapted
from sparsehyper.training import CheckpointError, Evaluation, Run
from sparsehyper.training.checkpoint import CHECKPOINTS, open_checkpoint
from sparsehyper.training.directory import check_same, json_ready, read_config
from sparsehyper.training.sources import condition

# Settings that may change when a run is resumed: the steps already made do not depend on them. A
# folder of images may have moved; a fingerprint identifies its content.
MAY_DIFFER = (
    *("training.steps", "training.device", "training.cuda_graphs", "training.shard"),
    *("training.log_with", "data.source"),
)

# Errors that settings from a file may raise if this library did not write them.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class LoadedRun(NamedTuple):
    """A run, read by `load_run`."""

    experiment: Experiment
    tasks: TaskInfo
    model: nn.Module  # in evaluation mode
    task_list: TaskList
    checkpoint: str  # its `Checkpoint.id`
    directory: Path

    def hypernetwork(self) -> HyperNetwork:
        """The model; raises ``ValueError`` if it is a baseline."""
        if not isinstance(self.model, HyperNetwork):
            raise ValueError(
                f"`directory` {self.directory} holds the baseline {type(self.model).__name__}; "
                "this needs a hypernetwork"
            )
        return self.model

    def figures(self) -> dict[str, object]:
        """What was measured on the test data, for a model card; empty for a run without a result.

        Raises:
            CheckpointError: ``result.json`` is damaged or belongs to another run.
        """
        result = finished_result(self.directory, self.experiment)
        if result is None:
            return {}
        measured = Evaluation.from_dict(result["test"])
        score, values = measured.score, measured.accuracies
        words = {
            f"test {score}, mean of {len(values)} tasks": sum(values) / len(values),
            f"test {score}, worst of them": min(values),
        }
        form = "{:.1%}" if score == "accuracy" else "{:.3f}"
        return {what: form.format(value) for what, value in words.items()}

    def altered_by(self, task: str) -> str | None:
        """How the images of a task were altered, such as ``permuted:10``; None if they were not."""
        entry = self.task_list.entry(task)
        data = self.experiment.data
        if entry.row is None:
            return None
        made = data.tasks
        if made is None or isinstance(parse_tasks(made), (Split, Alphabets)):
            made = None  # a choice of classes
        return "; ".join(filter(None, [prepared_by(data.source), made])) or None

    def check_plain(self, task: str) -> None:
        """Raise ``ValueError`` if a task's images were altered; ``KeyError``: an unknown task."""
        if made := self.altered_by(task):
            raise ValueError(
                f"`task` {task!r} was trained on images altered by {made!r}, which image files are "
                "not; export its model, and alter its input in the same way"
            )

    def check_by_task(self, what: str) -> None:
        """Raise ``ValueError`` if models follow from the input, so that a task has no single one.

        Args:
            what: what cannot be done then, and why, as part of a sentence.
        """
        if isinstance(self.model, HyperNetwork) and not is_by_task(self.model):
            raise ValueError(
                f"`directory` {self.directory} holds a run with `conditioner` "
                f"{self.experiment.conditioner!r}, by which every input has a model of its own: "
                f"{what}; for that, train with another one, such as "
                f"{TaskEmbedding.kind!r} or {SupportSet.kind!r}"
            )

    def materialize(self, task: str) -> nn.Module:
        """The ordinary module of a task, with its tuned parameters, in evaluation mode.

        Where models follow from the input, it is one that calls the hypernetwork for the task. Its
        logits beyond the task's classes mean nothing.
        """
        entry = self.task_list.entry(task)
        own = self.task_list.own_model(task, self.experiment, self.tasks)
        if own is not None:
            return own
        if isinstance(self.model, HyperNetwork) and not is_by_task(self.model):
            return _OfInputs(self.model, task).eval()
        if isinstance(self.model, HyperNetwork):
            module = trimmed_head(self.model, self.model.materialize(task), len(entry.classes))
            module.load_state_dict(self.task_list.tuned().get(task, {}), strict=False)
            return module.eval()
        assert isinstance(self.model, (Experts, SharedTrunk))
        assert entry.row is not None
        return self.model.materialize(entry.row).eval()


class _OfInputs(nn.Module):
    """A hypernetwork called for one task, whose models follow from the inputs."""

    def __init__(self, model: HyperNetwork, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x, **condition(self.model, self.task))
        return out


def load_run(directory: str | PathLike[str], *, trust: Collection[str] = ()) -> LoadedRun:
    """Load the best model of a run so far: finished, in training or stopped. Needs no images.

    Args:
        directory: directory of the run.
        trust: as `read_experiment` takes it.

    Raises:
        FileNotFoundError: there is no run in ``directory``, or no checkpoint in it yet.
        CheckpointError: a file is damaged or belongs to another run.
        UntrustedTargetError, ValueError: as `read_experiment`.
    """
    path = Path(directory)
    experiment = read_experiment(path, trust=trust)
    info = recorded_tasks(path)
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
    tasks = TaskList.read(path, info, best.id)
    if is_adapted(path):
        tasks.apply(model, experiment, info, path)
        info = tasks.info(info)
    return LoadedRun(experiment, info, model.eval(), tasks, best.id, path)


def recorded_tasks(directory: Path) -> TaskInfo:
    """The tasks that a run was trained on; raises as `read_experiment`."""
    try:
        return TaskInfo.from_dict(read_run_config(directory)["resolved"]["tasks"])
    except _MALFORMED as error:
        raise _damaged(directory, error) from error


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
        ValueError: it was made in Python.
        UntrustedTargetError: its target is a function that ``trust`` does not contain.
    """
    path = Path(directory)
    config = read_run_config(path)
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
        # A run that is resumed for more steps still has the result of fewer, also while it goes on.
        steps = result["experiment"]["training"]["steps"]
        recorded = read_config(Path(directory))["config"]["training"]["steps"]
    except _MALFORMED as error:
        raise CheckpointError(f"{Path(directory) / 'result.json'} is damaged: {error!r}") from error
    return result if steps == recorded == experiment.training.steps else None


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
    recorded = read_run_config(path)
    try:
        found = recorded["resolved"]["tasks"]["fingerprint"]
    except _MALFORMED as error:
        raise _damaged(path, error) from error
    check_fingerprint(path, found, config["resolved"]["tasks"]["fingerprint"])
    check_same(f"the run in {path}", recorded, json_ready(config), may_differ)


def check_fingerprint(directory: Path, recorded: str, found: str) -> None:
    """Raise ``ValueError`` if the data of a run have changed since it was started."""
    if recorded != found:
        raise ValueError(
            f"the data have changed since the run in {directory} began: their fingerprint was "
            f"{recorded!r} and is {found!r}; restore them, or start a new run"
        )


def read_run_config(directory: Path) -> dict[str, Any]:
    """The configuration of a run, `up_to_date`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `read_experiment`.
    """
    config = read_config(directory)["config"]
    if "resolved" not in config:
        raise ValueError(
            f"the run in {directory} was made in Python, not by the command line; its best model "
            f"is loaded by HyperNetwork.load({str(directory / CHECKPOINTS / 'best')!r}, module), "
            "where `module` is a target as it was trained"
        )
    try:
        return up_to_date(config)
    except _MALFORMED as error:
        raise _damaged(directory, error) from error


def _damaged(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{directory / 'config.json'} is damaged: {error!r}")
