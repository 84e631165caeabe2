from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
import weakref

import pytest
import torch

from sparsehyper._util.memory import MIN_POOLED_BYTES, Memory, shared_memory
from sparsehyper.sparse import SparseLinear

FLOATS = MIN_POOLED_BYTES // 4


def test_memory_is_used_again_once_no_tensor_needs_it():
    memory = Memory()
    first = memory.empty([2, FLOATS])
    assert first.shape == (2, FLOATS)
    assert first.dtype == torch.float32
    address = first.data_ptr()
    row = first[1]  # a view holds the memory too
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
    addresses = set()
    for _ in range(6):
        layer.zero_grad()
        layer(x).sum().backward()
        addresses.add(layer.weight.grad.data_ptr())
    assert len(addresses) <= 3  # the output, of the same size, takes turns with it


def test_a_block_serves_what_is_down_to_half_its_size():
    memory = Memory()
    address = memory.empty([2 * FLOATS]).data_ptr()
    smaller = memory.empty([3, FLOATS // 2])
    assert smaller.shape == (3, FLOATS // 2)
    assert smaller.data_ptr() == address
    del smaller
    assert memory.empty([2 * FLOATS]).data_ptr() == address
    memory = Memory()
    address = memory.empty([2 * FLOATS + 2]).data_ptr()
    assert memory.empty([FLOATS]).data_ptr() != address


def test_no_more_is_held_than_was_in_use_at_the_busiest_moment():
    memory = Memory()

    def held():
        return sum(block.array.size for block in memory._blocks)

    pair = [memory.empty([FLOATS]), memory.empty([3 * FLOATS])]
    assert held() == 4 * FLOATS
    del pair
    assert held() == 4 * FLOATS
    memory.empty([8 * FLOATS])  # no idle block fits
    assert held() == 8 * FLOATS
    memory.empty([3 * FLOATS])
    assert held() == 3 * FLOATS


def test_memory_lives_as_long_as_a_layer(monkeypatch):
    monkeypatch.setattr("sparsehyper._util.memory._shared", lambda: None)
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


def interrupted(memory, interruption):
    """Interrupt an allocation before each of its lines in turn; yield both blocks handed out."""
    lines = 0
    while True:
        pair = [memory.empty([FLOATS]) for _ in range(2)]  # idle from here on
        del pair
        countdown, during = lines, []

        def trace(frame, event, arg, during=during):
            nonlocal countdown
            if not frame.f_code.co_filename.endswith("memory.py"):
                return None
            if event == "line" and not during:
                countdown -= 1
                if countdown < 0:
                    during.append(interruption())
            return trace

        sys.settrace(trace)
        try:
            mine = memory.empty([FLOATS])
        finally:
            sys.settrace(None)
        if not during:
            assert lines > 10
            return
        yield mine, during[0]
        lines += 1


def test_an_interruption_at_any_line_takes_a_block_of_its_own():
    memory = Memory()
    for mine, other in interrupted(memory, lambda: memory.empty([FLOATS])):
        assert mine.data_ptr() != other.data_ptr()
        third = memory.empty([FLOATS])
        assert len({t.data_ptr() for t in (mine, other, third)}) == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_at_any_line_leaves_the_child_its_memory():
    memory = Memory()

    def fork():
        child = os.fork()
        if child == 0:
            sys.settrace(None)
            tensors = [memory.empty([FLOATS]) for _ in range(3)]
            os._exit(len({tensor.data_ptr() for tensor in tensors}))
        return child

    for _, child in interrupted(memory, fork):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
