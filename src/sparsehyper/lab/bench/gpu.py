"""On a GPU: layers, generators and training steps against the speed of its memory.

A run makes many calls, one after another, and times them by the device's own clock; the host is
waited for where it is the slower of the two. *Graph* is the same work recorded as a CUDA graph and
replayed, without the host. What does not fit, or fails, is left out with its reason, since the
script must run on any machine.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper.lab.bench.generators import EIGHTH, LATENT, SMALL, build, hypernetwork
from sparsehyper.lab.bench.gpu_checks import check_gpu
from sparsehyper.lab.bench.products import Coo, bytes_moved
from sparsehyper.lab.bench.sizes import Sizes
from sparsehyper.lab.bench.targets import ResNet18, mlp, resnet426k
from sparsehyper.lab.bench.timing import TimedRun, alternate, floor, spread, times
from sparsehyper.sparse import SparseLinear

GPU_GROUPS = ("checks", "layers", "generators", "steps", "mixed", "compiled")
TASKS = 10
_LARGEST_CHUNKED = 20_000_000
_LARGEST_THESIS = 8  # embeddings: its scheme needs memory for each connection and embedding
_RUN_SECONDS = 0.03  # about; a run makes as many calls as fit
_MOST_CALLS = 50

Work = Callable[[], Any]


def measure_gpu(
    group: str, sizes: Sizes, rounds: int, seed: int, device: str = "cuda"
) -> dict[str, Any]:
    """Measure one of `GPU_GROUPS`: rows, what was left out, the speed of a copy, and the duration.

    ``checks`` are described in `check_gpu`. Any other row is a kind of work and a method. Its
    ``over`` is the time relative to moving every byte once at the speed of a copy (``floor``), to
    the thesis's scheme (``thesis``), to the plain target's step (``plain``) or to the chunked
    generator of the same budget (``chunked``). ``peak`` is in bytes, of the device's allocator.
    """
    start = time.perf_counter()
    bench = _Bench(torch.device(device), sizes, rounds, seed)
    rows: list[dict[str, Any]] = []
    with bench.leaving_out({"work": group}):
        rows = getattr(bench, group)()
    bench.free()
    seconds = time.perf_counter() - start
    return {"copy": bench.copy, "rows": rows, "skipped": bench.skipped, "seconds": seconds}


class _Bench:
    def __init__(self, device: torch.device, sizes: Sizes, rounds: int, seed: int) -> None:
        self.device, self.sizes, self.rounds, self.seed = device, sizes, rounds, seed
        self.skipped: list[dict[str, Any]] = []
        source = torch.ones(sizes.copy, device=device)  # 4 bytes each
        place = torch.empty_like(source)
        taken = alternate({"copy": self.timed(lambda: place.copy_(source))}, rounds)["copy"]
        self._byte_seconds = [seconds / (2 * source.nbytes) for seconds in taken]
        self.copy = {"bytes_per_second": spread([1 / s for s in self._byte_seconds])}

    def checks(self) -> list[dict[str, Any]]:
        """Comparisons with the CPU."""
        return check_gpu(self.device, self.seed)

    def layers(self) -> list[dict[str, Any]]:
        """Forward and backward passes of one sparse layer."""
        n_in, n_out, fan_in = self.sizes.layer
        rows = []
        for topology in ("circulant", "uniform", "local"):
            layer = SparseLinear(n_in, n_out, fan_in, topology=topology, seed=self.seed)
            methods: dict[str, nn.Module] = {"sparse": layer, "thesis": Coo(layer)}
            for module in methods.values():
                module.to(self.device)
            for batch in (*self.sizes.batches, *([64] if topology == "circulant" else [])):
                case = {"work": f"{topology}, {n_in:,} → {n_out:,}, k = {fan_in}", "batch": batch}
                x = self.random(batch, n_in).requires_grad_()
                grad = self.random(batch, n_out)
                works = {
                    name: _both(module, x, grad)
                    for name, module in methods.items()
                    if name != "thesis" or batch <= _LARGEST_THESIS
                }
                least = floor(self._byte_seconds, bytes_moved(layer, batch, backward=True))
                floors = dict.fromkeys(works, least)
                rows += self.rows(case, self.with_graphs(works), floors=floors)
        return rows

    def generators(self) -> list[dict[str, Any]]:
        """Forward and backward passes of whole generators, from one embedding."""
        rows = []
        for numel in self.sizes.gpu_generators:
            names = ["sparse", EIGHTH, *(["chunked"] if numel <= _LARGEST_CHUNKED else [])]
            z, grad = self.random(1, LATENT).requires_grad_(), self.random(1, numel)
            works, built, peaks, least = {}, {}, {}, {}
            for name in names:
                before, start = self.allocated(), time.perf_counter()
                module = build(name, numel, self.seed).to(self.device)
                built[name] = time.perf_counter() - start
                of = [m for m in module.modules() if isinstance(m, SparseLinear)]
                if of:
                    count = sum(bytes_moved(layer, 1, backward=True) for layer in of)
                    least[name] = floor(self._byte_seconds, count)
                works[name] = _both(module, z, grad)
                peaks[name] = self.peak(works[name], before)
            case = {"work": f"generator, N = {numel:,}", "batch": 1}
            more = {"build_seconds": built, "peak": peaks}
            rows += self.rows(case | more, self.with_graphs(works), floors=least)
            del works, z, grad, module
            self.free()
        return rows

    def steps(self) -> list[dict[str, Any]]:
        """Training steps on a batch of one task."""
        rows = []
        for name, make, x, y in self.targets():
            works, peaks = {}, {}
            for method in ("plain", "sparse", "chunked", SMALL):
                before, task = self.allocated(), None if method == "plain" else 0
                model = make() if task is None else hypernetwork(make(), method, TASKS)
                works[method] = self.step(model, task, x, y)
                peaks[method] = self.peak(works[method], before)
            case = {"work": f"step, {name}", "batch": len(x), "peak": peaks}
            rows += self.rows(case, self.with_graphs(works))
            del works, model
            self.free()
        return rows

    def mixed(self) -> list[dict[str, Any]]:
        """Training steps on a batch of several tasks, and on as many images of a plain target."""
        rows = []
        for name, make, x, y in self.targets()[:2]:
            for tasks in (TASKS, 4, 2):
                ids = (torch.arange(len(x)) % tasks).sort().values
                hnet = hypernetwork(make(), "sparse", TASKS)
                parts = [(t, (ids == t).nonzero().flatten().to(self.device)) for t in range(tasks)]

                def loop(hnet: Any = hnet, parts: Any = parts, x: Tensor = x) -> Tensor:
                    return torch.cat([hnet(x[rows], task=t) for t, rows in parts])

                works = {
                    "plain": self.step(make(), None, x, y),
                    "sparse": self.step(hnet, ids, x, y),
                    "sparse, loop": self.step(hnet, ids, x, y, loop),
                }
                if tasks == TASKS:
                    grouped = self.step(hnet, hnet.group(ids, len(x)), x, y)
                    works |= self.with_graphs(
                        {"plain": works["plain"], "sparse": grouped}, only=True
                    )
                rows += self.rows({"work": f"{tasks} tasks, {name}", "batch": len(x)}, works)
        return rows

    def compiled(self) -> list[dict[str, Any]]:
        """Steps of compiled models, of two tasks in turn."""
        if not self.sizes.compile:
            return []
        name, make, x, y = self.targets()[0]
        plain, hnet = make(), hypernetwork(make(), "sparse", TASKS)
        works, graphs, seconds = {}, {}, {}
        for method, model, task in (("plain", plain, None), ("sparse", hnet, 0)):
            with self.leaving_out({"work": "compiled", "method": method}):
                torch._dynamo.reset()
                before = _compiled_graphs()
                step = self.step(model, task, x, y, compiled=True)
                start = time.perf_counter()
                step()
                if task is not None:
                    self.step(model, 1, x, y, compiled=True)()
                seconds[method] = time.perf_counter() - start
                graphs[method] = _compiled_graphs() - before
                works[method] = step
        case = {"work": f"compiled step, {name}", "batch": len(x)}
        return self.rows({**case, "graphs": graphs, "compile_seconds": seconds}, works)

    # --- parts of the above ---

    def targets(self) -> list[tuple[str, Callable[[], nn.Module], Tensor, Tensor]]:
        """Names, makers, images and labels."""
        (small, medium, large), side = self.sizes.gpu_images, self.sizes.gpu_side
        shapes = {
            "MLP 784-400-400-400-10": (lambda: mlp(784, 400, 400, 400, 10), (small, 1, 28, 28)),
            "ResNet of 426,426": (resnet426k, (medium, 3, 32, 32)),
            "ResNet-18": (ResNet18, (large, 3, side, side)),
        }
        return [
            (
                name,
                partial(self.made, make),
                self.random(*shape),
                self.labels(shape),
            )
            for name, (make, shape) in shapes.items()
        ]

    def made(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A new target on the device."""
        return make().to(self.device)

    def step(
        self,
        model: nn.Module,
        task: Any,
        x: Tensor,
        y: Tensor,
        call: Callable[[], Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> Work:
        """A training step: forward, cross entropy, backward, clipping, Adam."""
        parameters = list(model.parameters())
        capturable = self.device.type == "cuda"
        optimizer = torch.optim.Adam(parameters, 1e-3, fused=True, capturable=capturable)
        forward = torch.compile(model) if compiled else model
        given = {} if task is None else {"task": task}

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            logits = forward(x, **given) if call is None else call()
            F.cross_entropy(logits, y).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        return step

    def rows(
        self,
        case: dict[str, Any],
        works: Mapping[str, Work],
        *,
        floors: Mapping[str, list[float]] = MappingProxyType({}),
    ) -> list[dict[str, Any]]:
        """Time works in turn; one row for each that can be run."""
        runs: dict[str, TimedRun] = {}
        for name, work in works.items():
            with self.leaving_out({**case, "method": name}):
                work()
                runs[name] = self.timed(work)
        taken = alternate(runs, self.rounds)
        rows = []
        for name, seconds in taken.items():
            graph = ", graph" if name.endswith(", graph") else ""
            least = floors.get(name.removesuffix(graph))
            over = {} if least is None else {"floor": times(seconds, least)}
            over |= {
                other: times(seconds, taken[other + graph])
                for other in ("plain", "chunked", "thesis")
                if other + graph in taken and other + graph != name
            }
            if graph and "plain" in taken:
                over["plain, eager"] = times(seconds, taken["plain"])
            rows.append(
                {
                    **{key: value for key, value in case.items() if not isinstance(value, dict)},
                    **{key: v.get(name) for key, v in case.items() if isinstance(v, dict)},
                    "method": name,
                    "seconds": seconds,
                    "ms": spread([1e3 * s for s in seconds]),
                    "over": over,
                }
            )
        return rows

    def with_graphs(self, works: Mapping[str, Work], *, only: bool = False) -> dict[str, Work]:
        """The works, and each of them as a CUDA graph."""
        all_works = {} if only else dict(works)
        for name, work in works.items() if self.device.type == "cuda" else ():
            with self.leaving_out({"work": "graph", "method": name}):
                all_works[f"{name}, graph"] = _replayed(work)
        return all_works

    def timed(self, work: Work) -> TimedRun:
        """A run that makes several calls and returns the seconds of one."""
        calls = 0

        def run() -> float:
            nonlocal calls
            if not calls:
                self.seconds(work, 2)
                one = self.seconds(work, 1)
                calls = max(1, min(_MOST_CALLS, int(_RUN_SECONDS / one)))
            return self.seconds(work, calls)

        return run

    def seconds(self, work: Work, calls: int) -> float:
        """Mean seconds of a call."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def allocated(self) -> int:
        """Bytes allocated on the device; 0 on the CPU."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def peak(self, work: Work, before: int) -> int | None:
        """Largest number of bytes above ``before`` in the second call; None on the CPU."""
        work()
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before

    @contextmanager
    def leaving_out(self, case: dict[str, Any]) -> Iterator[None]:
        """Context in which an error only leaves something out."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            plain = {k: v for k, v in case.items() if not isinstance(v, dict)}
            self.skipped.append({**plain, "reason": reason[:300]})
            self.free()

    def free(self) -> None:
        """Give memory back that nothing needs."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        rng = torch.Generator(self.device).manual_seed(self.seed)
        return torch.randn(*shape, generator=rng, device=self.device)

    def labels(self, shape: Sequence[int]) -> Tensor:
        """Class numbers."""
        return (torch.arange(shape[0]) % 10).to(self.device)


def _both(module: nn.Module, x: Tensor, grad: Tensor) -> Work:
    def work() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).backward(grad)

    return work


def _replayed(work: Work) -> Work:
    """The work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries choose their kernels
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


def _compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
