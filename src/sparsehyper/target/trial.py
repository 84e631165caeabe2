"""Trials of a module: what does a run leave behind, and does it mix samples?"""

from __future__ import annotations

import gc
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_DRAWS = {
    _aten.rand.default,
    _aten.randn.default,
    _aten.rand_like.default,
    _aten.randn_like.default,
    _aten.uniform_.default,
    _aten.normal_.default,
    _aten.exponential_.default,
    _aten.bernoulli_.float,
}
# Where these have the probability of dropout among their arguments.
_DROPOUT = {
    _aten.native_dropout.default: 1,
    _aten._scaled_dot_product_flash_attention.default: 3,
    _aten._scaled_dot_product_efficient_attention.default: 5,
    _aten._scaled_dot_product_cudnn_attention.default: 5,
    _aten._cudnn_rnn.default: 11,
}


class Trial:
    """A trial run of a module.

    Args:
        module: a copy, which the run may spoil.
        devices: CUDA devices whose random state the trial must not change.

    Attributes:
        operations: Operations that ran.
    """

    def __init__(self, module: nn.Module, devices: Sequence[torch.device]) -> None:
        self._module, self._devices = module, devices
        self.operations: set[Any] = set()

    def leaves_no_trace(self, run: Callable[[], None]) -> bool:
        """Whether ``run`` succeeds, keeps nothing, and draws from PyTorch's generators only."""
        before = _contents(self._module)
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(self._devices),
            other_generators() as were_used,
            _without_collection(),
        ):
            warnings.simplefilter("ignore")
            # vmap warns of this before it loops over single operations
            warnings.filterwarnings("error", message=".*performance drop")
            try:
                with _Recorder(self.operations):
                    run()
            except Exception:
                _remove_kept_tensors()
                return False
            kept = _remove_kept_tensors()
        return not (kept or were_used() or _contents(self._module) != before)


class EvenDraws(TorchDispatchMode):
    """Context in which nothing is dropped out, and all random numbers are 0.5.

    So each sample gets the same, however many there are. Draws that depend on a tensor stay random.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (place := _DROPOUT.get(func)) is not None and len(args) > place:
            args = (*args[:place], 0.0, *args[place + 1 :])
        out = func(*args, **(kwargs or {}))
        return out.fill_(0.5) if func in _DRAWS else out


class _Recorder(TorchDispatchMode):
    """Records which operations run, and ends the run where vmap would be wrong in silence."""

    def __init__(self, operations: set[Any]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations.add(func.overloadpacket)
        if func is _aten.embedding_dense_backward.default and args[3] >= 0:
            raise NotImplementedError("vmap leaves out the padding of the first task only")
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Context without garbage collection: new objects stay in the youngest generation."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _remove_kept_tensors() -> bool:
    """Remove vmap's tensors from lists and dicts; return whether any are still held."""
    kept = [
        each
        for each in gc.get_objects(generation=0)
        if type(each) is Tensor and torch._C._functorch.is_functorch_wrapped_tensor(each)
    ]
    ids = set(map(id, kept))
    for holder in gc.get_referrers(*kept) if kept else ():  # it goes through all objects
        if isinstance(holder, list) and holder is not kept:
            holder[:] = [each for each in holder if id(each) not in ids]
        elif isinstance(holder, dict):
            for key in [key for key, each in holder.items() if id(each) in ids]:
                del holder[key]
    return bool(kept)


@contextmanager
def other_generators() -> Iterator[Callable[[], bool]]:
    """Context that restores Python's and NumPy's random state at its end.

    Yields a function that tells, afterwards, whether either of them was used.
    """
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    used = False
    try:
        yield lambda: used
    finally:
        numpy_state = np.random.get_state()  # noqa: NPY002
        used = random.getstate() != before[0] or not all(
            np.array_equal(now, was) for now, was in zip(numpy_state, before[1], strict=True)
        )
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _contents(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """A description of a module and all that it holds, which is equal if nothing has changed.

    A tensor has changed if it was written to. Other things have changed if they are other objects
    or, as far as one can tell, compare unequal.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return id(value)
    seen[id(value)] = value
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version, value.grad is None
    if isinstance(value, np.ndarray):
        return id(value), value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, nn.RNNBase):  # it makes its weight lists anew at every run
        held = {k: v for k, v in vars(value).items() if not k.startswith("_flat_weight")}
        return [(name, _contents(each, seen)) for name, each in held.items()]
    if isinstance(value, Mapping):
        return [(id(k), _contents(v, seen)) for k, v in list(value.items())]
    if isinstance(value, list | tuple | deque):
        return [_contents(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return frozenset(map(id, value))
    if isinstance(value, int | float | complex | str | bytes | type(None) | type):
        return value
    return id(value), [
        (name, _contents(each, seen)) for name, each in getattr(value, "__dict__", {}).items()
    ]
