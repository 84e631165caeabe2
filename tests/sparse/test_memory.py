from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import torch

from sparsehyper.sparse import SparseLinear
from sparsehyper.sparse.memory import LARGE, MOST_IDLE, Memory, shared_memory

FLOATS = LARGE // 4


def test_memory_is_used_again_once_no_tensor_needs_it():
    memory = Memory()
    first = memory.empty([2, FLOATS])
    assert first.shape == (2, FLOATS)
    assert first.dtype == torch.float32
    address = first.data_ptr()
    row = first[1]  # a view keeps it as well
    del first
    second = memory.empty([FLOATS, 2])
    assert second.data_ptr() != address
    del row
    assert memory.empty([2 * FLOATS]).data_ptr() == address


def test_memory_of_a_gradient_in_use_is_not_written_to():
    layer = SparseLinear(4096, FLOATS, 1)
    x = torch.ones(1, 4096)
    layer(x).sum().backward()
    kept = layer.weight.grad
    assert (kept == 1).all()
    layer.zero_grad()
    (3 * layer(x)).sum().backward()
    assert (kept == 1).all()
    assert (layer.weight.grad == 3).all()
    (3 * layer(x)).sum().backward()  # accumulates
    assert (layer.weight.grad == 6).all()
    del kept
    layer.zero_grad()
    address = None
    for _ in range(3):
        layer.zero_grad()
        layer(x).sum().backward()
        assert address in (None, layer.weight.grad.data_ptr())
        address = layer.weight.grad.data_ptr()


def test_idle_memory_is_limited():
    memory = Memory()
    half = MOST_IDLE // 8  # floats
    blocks = [memory.empty([half - i]) for i in range(4)]
    ends = [weakref.ref(block.array) for block in memory._blocks]
    del blocks
    memory.empty([half - 4])
    gc.collect()
    assert [end() is None for end in ends] == [True, True, True, False]


def test_what_is_larger_than_the_limit_is_not_kept():
    memory = Memory()
    memory.empty([MOST_IDLE // 4 + 1])
    assert memory._blocks == []


def test_memory_lives_as_long_as_a_layer(monkeypatch):
    monkeypatch.setattr("sparsehyper.sparse.memory._shared", lambda: None)
    layer = SparseLinear(2, 3, 1)
    memory = weakref.ref(shared_memory())
    other = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    del layer
    gc.collect()
    assert memory() is shared_memory()
    assert other(torch.ones(1, 2)).shape == (1, 3)
    del other
    gc.collect()
    assert memory() is None


def test_threads_never_share_a_block():
    memory, clashes = Memory(), []

    def work(value):
        for _ in range(20):
            tensor = memory.empty([FLOATS])
            tensor.fill_(value)
            if not (tensor == value).all():
                clashes.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
