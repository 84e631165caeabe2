"""Whatever reaches a raw address was checked, and memory handed out belongs to no one else."""

from __future__ import annotations

import copy
import gc
import io
import random
import threading

import numpy as np
import torch

from sparsehyper._util.memory import MIN_POOLED_BYTES, shared_memory
from sparsehyper.sparse import SparseLinear, chain
from sparsehyper.target.unpacking import UnpackPlan, unpack

TENSOR = MIN_POOLED_BYTES // 4  # numbers, just enough for a block of the pool


def test_hostile_arguments_are_refused_or_computed_right(commands, trials, record_figures):
    tried = trials(600, 20_000)
    call = f"from helpers.faults import hostile_products; hostile_products.main({tried})"
    done = commands.run(setup=call)
    assert done.code == 0, done.err[-3000:]
    refused, right, wrong = map(int, done.out.split())
    record_figures(
        "hostile arguments to the kernels are refused or computed right",
        tried=tried,
        refused=refused,
        right=right,
        wrong=wrong,
    )
    assert refused + right == tried
    assert min(refused, right) > tried / 20
    assert wrong == 0


def as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


class Program:
    """Random uses of tensors in shared memory, each compared with a private copy."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = shared_memory()
        self.layer = SparseLinear(4096, TENSOR, 1)
        self.plan = UnpackPlan(
            [TENSOR, 12], [torch.Size([TENSOR]), torch.Size([3, 4])], [1, 2], [0, 1]
        )
        self.held: list[tuple[object, np.ndarray]] = []
        self.differences = 0

    def hold(self, value):
        """Hold a tensor or array, with a copy of its content."""
        self.held.append((value, as_array(value).copy()))

    def some(self):
        tensors = [value for value, _ in self.held if isinstance(value, torch.Tensor)]
        return self.random.choice(tensors) if tensors else torch.zeros(4)

    def fresh(self):
        tensor = self.memory.empty([TENSOR]).fill_(self.random.random())
        self.hold(tensor)

    def view(self):
        flat = self.some().detach().flatten()
        self.hold(flat[self.random.randrange(max(1, len(flat))) :])

    def numpy(self):
        self.hold(self.some().detach().numpy())

    def dlpack(self):
        self.hold(torch.from_dlpack(self.some().detach()))

    def storage(self):
        tensor = self.some().detach()
        if tensor.numel():
            part = tensor.new_empty(0).set_(tensor.untyped_storage())
            self.hold(part[: tensor.numel()])

    def copied(self):
        tensor = self.some().detach()[-1000:]
        self.hold(copy.deepcopy(tensor))

    def saved(self):
        file = io.BytesIO()
        torch.save(self.some().detach()[-1000:].clone(), file)
        file.seek(0)
        self.hold(torch.load(file))

    def product(self):
        self.layer.zero_grad()
        x = torch.full([1, 4096], self.random.random(), requires_grad=True)
        hooked: list[torch.Tensor] = []
        y = chain([self.layer], x)
        y.register_hook(lambda grad: hooked.append(grad))
        (y * 2).sum().backward(retain_graph=True)
        self.hold(hooked[0])
        self.hold(self.layer.weight.grad)
        self.hold(y.detach())
        if self.random.random() < 0.5:  # once more through the graph; gradients add up in place
            self.held.pop(-2)
            y.sum().backward()
            self.hold(self.layer.weight.grad)
            self.layer.weight.grad = None

    def generated(self):
        vector = torch.full([TENSOR + 12], self.random.random(), requires_grad=True)
        large, small = unpack(vector, self.plan)
        self.hold(small)
        if self.random.random() < 0.5:
            self.hold(large)
        if self.random.random() < 0.3:
            (large.sum() + small.sum()).backward()
            self.hold(vector.grad)

    def written(self):
        """Write to a tensor that shares its memory with nothing."""
        tensor = self.memory.empty([TENSOR])
        tensor.fill_(-1)
        with torch.no_grad():
            tensor[::1000] = self.random.random()
        self.hold(tensor)

    def dropped(self):
        self.random.shuffle(self.held)
        del self.held[self.random.randrange(len(self.held) + 1) :]
        if self.random.random() < 0.1:
            gc.collect()

    def threaded(self):
        def work():
            tensor = self.memory.empty([TENSOR]).fill_(threading.get_ident() % 1000)
            results.append(tensor)

        results: list[torch.Tensor] = []
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for tensor in results:
            self.differences += bool((tensor != tensor[0].item()).any())
            self.hold(tensor)

    def check(self):
        for value, content in self.held:
            self.differences += not np.array_equal(as_array(value), content)

    def run(self, steps: int) -> None:
        actions = [
            *(self.fresh, self.view, self.numpy, self.dlpack, self.storage, self.copied),
            *(self.saved, self.product, self.generated, self.written, self.threaded),
        ]
        for _ in range(steps):
            self.random.choice(actions)()
            if len(self.held) > 12 or self.random.random() < 0.25:
                self.dropped()
        self.check()


def test_memory_handed_out_is_no_one_elses(trials, record_figures):
    tried, differences = trials(30, 1000), 0
    for seed in range(tried):
        program = Program(seed)
        program.run(10)
        differences += program.differences
    record_figures(
        "memory handed out is no one else's", tried=10 * tried, programs=tried, wrong=differences
    )
    assert differences == 0
