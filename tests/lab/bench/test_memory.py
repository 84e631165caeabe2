from __future__ import annotations

import pytest
import torch

from helpers.memory_calls import SIZE, die, hold_and_release
from sparsehyper.lab.bench import memory
from sparsehyper.training.isolation import ChildError, DiedError, call_in_process

pytestmark = pytest.mark.skipif(not memory.can_measure(), reason="needs Linux")


def test_the_peak_is_of_the_work_since_the_reset():
    peak, after, since = call_in_process(hold_and_release)
    assert SIZE <= peak < 1.3 * SIZE
    assert after < 0.3 * SIZE
    assert since < 0.3 * SIZE


def test_a_process_has_the_threads_of_this_one_and_its_errors_come_back():
    assert call_in_process(torch.get_num_threads) == torch.get_num_threads()
    with pytest.raises(ChildError, match="ZeroDivisionError: "):
        call_in_process(divmod, 1, 0)
    with pytest.raises(DiedError, match="exit code 3"):
        call_in_process(die)


def test_something_is_available():
    assert SIZE < memory.available_memory() < 1 << 50
