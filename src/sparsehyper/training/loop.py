"""The training loop.

The order of batches is a pure function of the batch source's own seed, epoch and step. The model's
random numbers are a pure function of `TrainConfig.seed`, step and process. So a resumed run takes
exactly the steps that an uninterrupted run would have taken.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sparsehyper._util.devices import to_device
from sparsehyper._util.extras import require
from sparsehyper._util.inputs import Inputs
from sparsehyper._util.interrupt import Interrupted, deferred_signals
from sparsehyper._util.modes import training_mode
from sparsehyper._util.text import listed
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.training.checkpoint import TrainingState
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.evaluate import (
    Evaluation,
    EvaluationData,
    LabelledBatch,
    autocast,
    check_tasks,
    evaluate,
)
from sparsehyper.training.finite import (
    NonFiniteError,
    check_finite,
    features_finite,
    non_finite,
)
from sparsehyper.training.graphs import StepGraphs, check_recordable
from sparsehyper.training.optim import build_optimizer, evaluations_since_best, learning_rate
from sparsehyper.training.parallel import Parallel, Replicated, check_shardable
from sparsehyper.training.processes import Processes, processes
from sparsehyper.training.progress import Progress
from sparsehyper.training.recorder import Callback, Recorder, check_tracker
from sparsehyper.training.run import Run
from sparsehyper.training.sources import (
    ByTask,
    Measure,
    Measures,
    Passes,
    Tasks,
    condition,
)


@runtime_checkable
class BatchSource(Protocol):
    """A stream of training batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in one pass over the data."""

    def batch(self, epoch: int, step: int) -> LabelledBatch:
        """One batch, the same on every call; `step` is in [0, steps_per_epoch)."""


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`.

    Attributes:
        steps: total number of updates, fewer than requested if training stopped early.
        best_step: number of updates made at the best evaluation.
        best: the best evaluation, on the validation data.
        seconds: duration of this call.
        step_ms: median duration of an update in milliseconds, with its batches and without
            evaluations; ``None`` if this call made no update.
        peak_memory: bytes of the device's allocator since the start of this call; on the CPU, of
            this process since it started.
    """

    steps: int
    best_step: int
    best: Evaluation
    seconds: float
    step_ms: float | None
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {**vars(self), "best": self.best.to_dict()}


def train(
    model: nn.Module,
    batches: BatchSource | Iterable[Any],
    validation: EvaluationData | Iterable[Any],
    config: TrainConfig,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
    callback: Callback | None = None,
    names: Sequence[str] | None = None,
    n_classes: Sequence[int] | None = None,
    examples: Iterable[Any] | EvaluationData | None = None,
    variance: float | None = None,
    run: Run | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a model on many tasks; on return it holds the weights of the best evaluation.

    Args:
        model: called with the inputs of a batch and ``task=task``, an int64 tensor ``[batch]``, or
            an int when the batch is of one task; or with the inputs alone if it is a hypernetwork
            that knows no tasks. It returns logits ``[batch, outputs]``, or numbers for labels that
            are floating-point numbers ``[batch, outputs]``, or what ``loss`` takes; of outputs that
            hold ``logits``, these count. It is moved to the device; its mode is restored
            afterwards.
        batches: anything that can be iterated over again and again, such as a ``DataLoader`` or a
            list, and gives ``(x, y, task)``: ``x`` a tensor or an array, a tuple or list of the
            model's arguments, or a dict of them by name; ``task`` a name or number, or one for each
            sample. Or it gives dicts of the model's arguments with ``"labels"`` and ``"task"``, as
            from `DataCollatorWithTask`. Or an object as `BatchSource`, with which a resumed run
            sees the same batches. With several processes, this process's share of every batch.
        validation: the same, read once and kept in memory, or an object as `EvaluationData`. It
            decides on the best evaluation (the highest mean accuracy, and of several the one with
            the lowest loss), early stopping and the plateau schedule.
        config: the settings.
        loss: called as ``loss(output, y)``; returns the mean over a batch, or one number for each
            sample. It is minimised as it is, with its own weights and reduction; the loss of an
            evaluation is the mean over its batches, weighted by their samples (by the class weights
            of the labels that count, for nn.CrossEntropyLoss and nn.NLLLoss). Its own parameters
            are not trained. None for the cross entropy, or for numbers the mean squared error.
        metric: called like ``loss``, for the batches of an evaluation, of
            ``config.eval_batch_size`` samples of one task; higher is better. It is used instead of
            the accuracy to choose the best evaluation. None for the accuracy or R², or with a
            ``loss`` of one's own for minus that loss.
        callback: called as ``callback(kind, step, values)`` with all metrics, of the kinds
            ``"train"`` (every ``config.log_every`` updates) and ``"validation"``.
        names: names of the tasks of the validation data, in the order of their numbers; None for
            those of a hypernetwork. A number in the data is a position in ``names``. A hypernetwork
            looks the names up among its own, so that they may be some of its tasks; ``batches``
            that call tasks by name may be of its others too.
        n_classes: number of classes of each task in ``names``; outputs beyond it are ignored: a
            ``loss`` or ``metric`` of one's own gets them as -inf.
        examples: training samples, in the form of ``validation``; needed by a hypernetwork with a
            ``head`` in closed form, whose heads are solved from them before each evaluation.
        variance: of labels that are numbers, within tasks, for R², as `evaluate` takes it.
        run: directory for metrics and checkpoints; training continues from a checkpoint if it has
            one. The model must then have a method ``save(directory)``. ``None`` trains in memory.
        quiet: show no progress.

    Raises:
        NonFiniteError: a loss or gradient is infinite or NaN; the update was not made.
        Interrupted: Ctrl-C or SIGTERM; the current step was finished and checkpointed first.
        CheckpointError: the run's checkpoint is damaged or belongs to another model.
        ValueError: an argument does not fit the others, or a task has no validation samples.

    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> batch = (x, (x[:, 0] > x[:, 1]).long(), "larger")  # is the first number the larger one?
    >>> hnet = HyperNetwork(nn.Linear(2, 2), Sparse(), TaskEmbedding(["larger"], dim=8))
    >>> config = TrainConfig(steps=50, lr=0.1, device="cpu")
    >>> train(hnet, [batch], [batch], config, quiet=True).best.accuracy > 0.9
    True
    """
    counted = len(validation.counts) if isinstance(validation, EvaluationData) else None
    tasks = Tasks.of(names, model, counted)
    if not isinstance(validation, EvaluationData):
        validation = ByTask(validation, tasks.named)
    if not isinstance(batches, BatchSource):
        batches = Passes(batches, tasks)
    if examples is not None and not isinstance(examples, EvaluationData):
        examples = ByTask(examples, tasks.named)
    names = check_tasks(validation.counts, tasks.named, n_classes)
    here = processes(config.device)
    check_tracker(config.log_with, has_run=run is not None)
    if config.shard:
        check_shardable(model)
    if config.cuda_graphs:
        check_recordable(model, here)
    solved = model if isinstance(model, HyperNetwork) and model.head is not None else None
    if solved is not None and examples is None:
        raise ValueError(
            "`examples` is missing: a model with a `head` solves its heads from the training "
            "samples; give them in the form of `validation`"
        )
    if solved is not None and examples is not None and len(examples.counts) != len(names):
        raise ValueError(
            f"`examples` must be of the {len(names)} tasks {listed(names)}, got examples of "
            f"{len(examples.counts)} tasks"
        )
    sharded = config.shard and here.count > 1
    # The parts of a model that is sharded are moved one by one.
    model.to("cpu" if sharded else here.device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("`model` has no parameter that requires a gradient")
    _check_not_trained(loss, trainable)
    optimizer = build_optimizer(config, trainable)
    state = TrainingState()
    if run is not None:
        here.wait()  # until the main process has recovered the run from a crash
        state = run.restore(model, optimizer)
        state.check_steps(config.steps)
        if state.step == config.steps and not _is_evaluated(run, state.step):
            raise ValueError(
                f"`steps` is {config.steps}; the run has made them, but has not evaluated the last "
                "one; give more steps"
            )
        run.record_config()
    best_weights: dict[str, Tensor] = {}
    measures = Measures(loss, metric, n_classes)

    parallel: Parallel
    if sharded:
        # It takes PyTorch half a second to import what this needs.
        from sparsehyper.training.sharded import Sharded

        parallel = Sharded(model, optimizer, config, here)
    else:
        parallel = Replicated(model, optimizer, config, here)
    optimizer = parallel.optimizer
    graphs = StepGraphs(model, trainable, here) if config.cuda_graphs else None

    def add_gradients(x: Inputs, y: Tensor, task: Any, classes: int | Tensor | None) -> Tensor:
        with autocast(here.device, config.precision):
            labels = {"solve_for": y} if solved else {}
            logits = x.call(parallel, **condition(model, task), **labels)
        losses = measures.losses(logits, y, classes)
        (losses.mean() / config.accumulate).backward()
        return losses.detach()

    started = time.perf_counter()
    first_step = state.step
    step_seconds: list[float] = []
    window = _Window()
    if here.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(here.device)
    stream = _stream(
        batches,
        state.step * config.accumulate,
        here.device,
        n_classes,
        measures,
        tasks,
        move_tasks=not isinstance(model, HyperNetwork),  # it groups the samples on the CPU
    )
    with (
        training_mode(model),
        deferred_signals() as asked_to_stop,
        torch.random.fork_rng([here.device] if here.device.type == "cuda" else []),
        Recorder(
            run,
            callback,
            log_with=config.log_with,
            config={"training": config.to_dict(), **(run.config if run else {})},
            start=state.step,
        ) as recorder,
        Progress(config.steps, state.step, show=here.is_main and not quiet) as progress,
        _whole_afterwards(parallel),
    ):
        batch = next(stream)
        while state.step < config.steps and not _out_of_patience(config, state):
            step_started = time.perf_counter()
            _seed_step(config.seed, state.step, here)
            lr = learning_rate(config, state.step, state.accuracies)
            for group in optimizer.param_groups:
                group["lr"] = lr

            optimizer.zero_grad(set_to_none=True)
            seen: list[tuple[Tensor, int | Tensor]] = []
            samples = 0
            for part in range(config.accumulate):
                _, y, task, _ = batch
                with parallel.part(part, task):
                    if graphs is None:
                        losses = add_gradients(*batch)
                    else:
                        losses = graphs(add_gradients, *batch)
                seen.append((losses, task))
                samples += len(y)
                batch = next(stream)  # the device is still busy with the backward pass
            parallel.finish()

            gradients = parallel.gradients()
            norm = parallel.norm(gradients)
            mean = torch.stack([part_losses.mean() for part_losses, _ in seen]).mean()
            flags = torch.stack([mean, norm, norm.new_full((), asked_to_stop())])
            # The only wait for the device in a step: nothing may be updated before this check.
            loss_value, norm_value, stop = (here.sum(flags) / here.count).tolist()
            if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                raise non_finite(loss_value, norm_value, state, seen, tasks, here, run)
            if config.clip is not None and norm_value > config.clip:
                torch._foreach_mul_(gradients, (config.clip / (norm + 1e-6)).clamp(max=1))
            optimizer.step()
            state.step += 1

            step_seconds.append(time.perf_counter() - step_started)
            window.add(loss_value, samples * here.count, step_seconds[-1])
            progress.update(state.step, window.loss, window.rate)
            evaluating = state.step % config.eval_every == 0 or state.step == config.steps
            if state.step % config.log_every == 0 or evaluating or stop:
                epoch = state.step * config.accumulate / batches.steps_per_epoch
                values = {"epoch": epoch, "loss": window.loss, "lr": lr, "grad_norm": norm_value}
                recorder.write("train", state.step, {**values, "images_per_second": window.rate})
                window = _Window()

            if evaluating or stop:
                improved = False
                with parallel.whole() as whole_optimizer:
                    if here.count > 1 and isinstance(model, HyperNetwork):
                        model.sync_statistics()  # other processes have seen other tasks
                    parallel.synchronise()
                    if evaluating:
                        if isinstance(model, HyperNetwork):
                            model.conditioner.renew()
                        if solved is not None and examples is not None:
                            with features_finite(state, run):
                                _solve_heads(solved, examples, names, config)
                        evaluation = evaluate(
                            model,
                            validation,
                            names=names,
                            n_classes=n_classes,
                            batch_size=config.eval_batch_size,
                            precision=config.precision,
                            loss=loss,
                            metric=metric,
                            variance=variance,
                            processes=here,
                        )
                        check_finite(evaluation, state, run)
                        improved = state.best is None or evaluation.is_better_than(state.best)
                        state.accuracies.append(evaluation.accuracy)
                        if improved:
                            state.best, state.best_step = evaluation, state.step
                        recorder.write("validation", state.step, evaluation.to_dict())
                        pace = (time.perf_counter() - started) / (state.step - first_step)
                        left = pace * (config.steps - state.step)
                        progress.evaluated(state.step, evaluation, left)
                    if run is not None:
                        run.save(model, whole_optimizer, state, best=improved)
                    elif improved:
                        best_weights = _copied_state(model, sharded)
            if stop:
                raise _interrupted(state, run)
        if asked_to_stop():
            raise _interrupted(state, run)

    assert state.best is not None
    if run is not None:
        here.wait()
        run.restore_best(model)
    else:
        model.load_state_dict(best_weights)
    return TrainResult(
        steps=state.step,
        best_step=state.best_step,
        best=state.best,
        seconds=time.perf_counter() - started,
        step_ms=1e3 * statistics.median(step_seconds) if step_seconds else None,
        peak_memory=_peak_memory(here.device),
    )


def _check_not_trained(loss: Measure | None, trainable: Sequence[nn.Parameter]) -> None:
    """Raise if a loss has parameters of its own to train; only the model's are trained."""
    known = {id(parameter) for parameter in trainable}
    pairs = loss.named_parameters() if isinstance(loss, nn.Module) else ()
    for name, parameter in pairs:
        if parameter.requires_grad and id(parameter) not in known:
            raise ValueError(
                f"`loss` has the parameter {name!r}, which `train` would not train; freeze it by "
                "`loss.requires_grad_(False)`, or train with a loop of your own, whose optimiser "
                "gets the parameters of both"
            )


@contextmanager
def _whole_afterwards(parallel: Parallel) -> Iterator[None]:
    """Context that leaves the whole model, also after errors that all processes raise together."""
    try:
        yield
    except (NonFiniteError, Interrupted):
        parallel.close()
        raise
    parallel.close()


def _copied_state(model: nn.Module, to_cpu: bool) -> dict[str, Any]:
    """The model's state with tensors of its own."""
    state = model.state_dict()  # replaced in place, as the dict also knows the modules' versions
    for name, tensor in state.items():
        # A device may hold the whole model for a while only.
        state[name] = tensor.to("cpu", copy=True) if to_cpu else tensor.clone()
    return state


def _solve_heads(
    model: HyperNetwork, examples: EvaluationData, names: Sequence[str], config: TrainConfig
) -> None:
    """Solve the heads of some tasks; those of numbers under the prior that the tasks give."""

    def pairs(task: int) -> Iterator[tuple[Any, Tensor]]:
        return ((x, y) for x, y, _ in examples.batches(task, config.eval_batch_size))

    if len(names) > 1 and not model.own_head().classes:
        model.fit_head_prior({name: pairs(task) for task, name in enumerate(names)})
        return
    for task, name in enumerate(names):
        model.solve_head(name, pairs(task))


class _Window:
    """Mean loss and throughput since the last line of metrics."""

    def __init__(self) -> None:
        self._losses = self._seconds = 0.0
        self._steps = self._samples = 0

    def add(self, loss: float, samples: int, seconds: float) -> None:
        self._losses += loss
        self._seconds += seconds
        self._steps += 1
        self._samples += samples

    @property
    def loss(self) -> float:
        return self._losses / self._steps

    @property
    def rate(self) -> float:
        return self._samples / self._seconds


def _stream(
    batches: BatchSource,
    start: int,
    device: torch.device,
    n_classes: Sequence[int] | None,
    measures: Measures,
    tasks: Tasks,
    *,
    move_tasks: bool,
) -> Iterator[tuple[Inputs, Tensor, int | Tensor, int | Tensor | None]]:
    """Batches from a position in the stream on, moved to the device, and their tasks' classes.

    Tasks are the model's numbers.
    """
    among = len(tasks.known if isinstance(batches, Passes) else tasks.named)
    position, limits = start, torch.full([len(tasks.known)], sys.maxsize)
    limits[tasks.numbers[: len(tasks.named)]] = torch.tensor(list(n_classes or [sys.maxsize]))
    while True:
        x, y, task = batches.batch(*divmod(position, batches.steps_per_epoch))
        task = tasks.numbered(task, among)
        each = None if n_classes is None else limits.to(task.device)[task]
        measures.check_labels(y, each)
        x, y = Inputs.of(x).to(device), to_device(y, device)
        # A batch of one task needs only one set of parameters. This is checked on the CPU, where it
        # does not wait for the device.
        if task.device.type == "cpu" and bool((task == task[0]).all()):
            only = int(task[0])
            yield x, y, only, None if n_classes is None else int(limits[only])
        else:
            each = None if each is None else to_device(each, device)
            yield x, y, to_device(task, device) if move_tasks else task, each
        position += 1


def _seed_step(seed: int, step: int, here: Processes) -> None:
    drawn = int(np.random.SeedSequence((seed, step, here.rank)).generate_state(1)[0])
    # torch.manual_seed seeds every backend, which takes a hundred times as long.
    torch.default_generator.manual_seed(drawn)
    if here.device.type != "cpu":
        torch.get_device_module(here.device).manual_seed(drawn)


def _out_of_patience(config: TrainConfig, state: TrainingState) -> bool:
    return (
        config.patience is not None
        and state.best is not None  # a damaged one counts no longer
        and evaluations_since_best(state.accuracies) >= config.patience
    )


def _is_evaluated(run: Run, step: int) -> bool:
    """Whether the model was evaluated after an update."""
    metrics = run.read_metrics()
    return any(row["kind"] == "validation" and row["step"] == step for row in metrics)


def _interrupted(state: TrainingState, run: Run | None) -> Interrupted:
    where = f"; resume the run in {run.path} to go on" if run else ""
    return Interrupted(f"stopped after step {state.step}{where}", state.step)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(require("psutil", "train").Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
