"""A process that forks after it has used the library: its children wait for nothing."""

from __future__ import annotations

import pytest

PREPARED = """
import os, random, signal, threading
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper._util.memory import shared_memory

random.seed(0)
torch.manual_seed(0)
target = nn.Sequential(nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 4))
hnet = HyperNetwork(target, Sparse(), TaskEmbedding(["a", "b"], dim=16))
x = torch.randn(8, 1500)
memory = shared_memory()
size = [3 << 20]
"""
WAYS = {
    # Its workers set one thread for themselves, as PyTorch's own do.
    "workers of a DataLoader after a step in several threads": """
torch.set_num_threads(2)
hnet(x, task="a").sum().backward()
expected = hnet.generate("a")["0.bias"].detach()

class Generated(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return hnet.generate("a")["0.bias"].detach()

for got in DataLoader(Generated(), num_workers=2, multiprocessing_context="fork"):
    assert torch.equal(got[0], expected)
""",
    "a fork while another thread takes memory": """
torch.set_num_threads(1)
kept = [memory.empty(size) for _ in range(200)]
ended = threading.Event()

def take():
    while not ended.is_set():
        memory.empty(size)

thread = threading.Thread(target=take)
thread.start()
for _ in range(TRIALS):
    child = os.fork()
    if not child:
        memory.empty(size)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
thread.join()
""",
    "a signal's handler that takes memory while the main thread does": """
torch.set_num_threads(1)
kept = [memory.empty(size) for _ in range(200)]
handled = 0

def handle(*_):
    global handled
    handled += 1
    memory.empty(size)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.004))

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
while handled < TRIALS:
    memory.empty(size)
signal.setitimer(signal.ITIMER_REAL, 0)
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_child_and_no_handler_waits_for_ever(way, commands, trials, record_figures):
    count = trials(20, 300)
    # A child that waits for ever is ended, with this test, by pytest's time limit.
    done = commands.run(setup=f"{PREPARED}\nTRIALS = {count}\n{WAYS[way]}")
    assert done.code == 0, done.err
    record_figures("forks and signals wait for nothing", what=way, tried=count, wrong=0)
