"""Training steps as CUDA graphs: recorded once, then replayed without the host's share of the work.

A step of a small target consists of hundreds of launches, which take the host longer to make than
the device to carry out. A graph records them and replays them at once. It is fixed: it uses the
same memory every time, and nothing in it depends on values. So inputs are copied to its memory
before a replay, the task is one of the inputs, and there is one graph for each kind of batch.

Graphs hold the work up to the gradients. The update comes after a look at the loss, which must be
finite. The target's Python code runs twice for each kind of batch, and never again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsehyper._util.devices import copy_all, to_device
from sparsehyper._util.inputs import Inputs
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.target.many_tasks import Grouping
from sparsehyper.training.processes import Processes

# Kinds of batches to record; each graph keeps gradients of its own. Other batches run as ever.
_MOST_GRAPHS = 64

AddGradients = Callable[[Inputs, Tensor, Grouping, int | Tensor | None], Tensor]
"""Adds a batch's gradients to those of the parameters and returns its losses ``[batch]``."""


def check_recordable(model: nn.Module, here: Processes) -> HyperNetwork:
    """The model, if its steps can be recorded.

    Raises:
        ValueError: there is no GPU, or several, or the model is not a `HyperNetwork` without a head
            in closed form, or its models follow from more than the task.
    """
    if here.device.type != "cuda" or here.count > 1:
        raise ValueError(
            "`cuda_graphs` needs one process on a CUDA device, got "
            f"{here.count} on {here.device.type!r}"
        )
    if not isinstance(model, HyperNetwork):
        raise ValueError(
            "`cuda_graphs` needs a `HyperNetwork`, whose steps are alike for all tasks, got a "
            f"{type(model).__name__}"
        )
    if not model.conditioner.by_task_alone:
        raise ValueError(
            "`cuda_graphs` needs a `conditioner` by which the task alone decides on the model, got "
            f"a {type(model.conditioner).__name__}; leave `cuda_graphs` out"
        )
    if model.head is not None:
        raise ValueError(
            "`cuda_graphs` cannot record a `head` in closed form, whose size follows from the "
            "labels of each batch; generate the head, or leave `cuda_graphs` out"
        )
    return model


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses: Tensor
    gradients: list[Tensor | None]


class StepGraphs:
    """Computes losses and gradients of batches, by graphs where a batch of the same kind was seen.

    The first batch of a kind runs as ever, so that libraries choose their kernels; the second is
    recorded. All batches run on a side stream, synchronised with the current stream before and
    after.

    Args:
        model: the model.
        parameters: its parameters that are trained.
        here: the device.

    Raises:
        ValueError: as `check_recordable`.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], here: Processes
    ) -> None:
        self._model = check_recordable(model, here)
        self._parameters = parameters
        self._recorded: dict[Hashable, _Recorded | None] = {}
        self._stream = torch.cuda.Stream(here.device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self,
        add_gradients: AddGradients,
        x: Inputs,
        y: Tensor,
        task: int | Tensor,
        classes: int | Tensor | None,
    ) -> Tensor:
        """The losses ``[batch]``, until the next call; the parameters get gradients.

        Args:
            add_gradients: computes both. The gradients are None before.
            x, y: inputs and labels.
            task: the task of all samples, or of each, on the CPU.
            classes: their numbers of classes.

        Raises:
            ValueError: the target waits for the device or does something else that a graph cannot.
        """
        grouping = self._model.group(task, len(x))
        inputs = [*x.tensors, y, grouping.tasks]
        if classes is not None:
            inputs.append(to_device(torch.as_tensor(classes), x.device))
        if grouping.order is not None:
            inputs.append(grouping.order)
        count = len(x.tensors)

        def work(*tensors: Tensor) -> Tensor:
            y, tasks, *others = tensors[count:]
            order = None if grouping.order is None else others[-1]
            limits = None if classes is None else others[0]
            own = x.with_tensors(tensors[:count])
            return add_gradients(own, y, Grouping(tasks, grouping.counts, order), limits)

        others = repr(x.with_tensors([None] * count))  # a graph keeps what is not a tensor
        kind = (grouping.counts, others, *((tensor.shape, tensor.dtype) for tensor in inputs))
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._run(kind, work, inputs)
        current.wait_stream(self._stream)
        return losses

    def _run(self, kind: Hashable, work: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
        if kind not in self._recorded:
            if len(self._recorded) < _MOST_GRAPHS:
                self._recorded[kind] = None
            return work(*inputs)
        recorded = self._recorded[kind]
        if recorded is None:
            recorded = self._recorded[kind] = self._record(work, inputs)
        copy_all(recorded.inputs, inputs)
        recorded.graph.replay()
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return recorded.losses

    def _record(self, work: Callable[..., Tensor], inputs: list[Tensor]) -> _Recorded:
        held, graph = [tensor.clone() for tensor in inputs], torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                losses = work(*held)
        except RuntimeError as error:
            reason = str(error.__context__ or error).partition("\n")[0]
            raise ValueError(
                "`cuda_graphs` cannot record a step of this model, which must not wait for the "
                f"device ({reason}); train without"
            ) from error
        return _Recorded(graph, held, losses, [p.grad for p in self._parameters])
