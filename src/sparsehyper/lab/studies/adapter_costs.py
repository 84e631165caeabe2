"""What generated adapters cost: numbers a task, a checkpoint, a mixed batch, and an update."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper._util.random import seeded
from sparsehyper.conditioning import TaskEmbedding
from sparsehyper.generators import LowRank
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.lab.data.sentences import Corpus
from sparsehyper.lab.studies.adapter_methods import How, Task, own_lora, scratch_lora

_MIXED = 8  # tasks
_EACH = (1, 8)  # sentences of each of them
_BATCH = 4  # sentences of an intent in an update
_ROUNDS = 20


def costs(corpus: Corpus, known: Sequence[Task], how: How, seed: int) -> dict[str, Any]:
    """Sizes and times of a hypernetwork with an embedding for each of some tasks.

    Returns:
        ``lora`` and ``embedding``, numbers of a task; ``trained``, trained numbers, and
        ``checkpoint``, the bytes of the files; ``mixed``, seconds of a loop over tasks ÷ those of
        one call, by number of sentences; ``step``, seconds of an update ÷ those of an update of
        peft's LoRA. Ratios have median and quartiles.
    """
    outputs = max(len(task.intents) for task in known)
    target = own_lora(corpus, outputs, how, seed)
    target.head.requires_grad_()
    hnet = HyperNetwork(
        target,
        LowRank(how.products),
        TaskEmbedding([task.name for task in known], how.latent_dim, seed=seed),
        generate="blocks.*",  # peft trains the last layer as it is, too
        base="residual",
        scale=how.scale,
        copy=False,
        seed=seed,
    )
    trained = sum(p.numel() for p in hnet.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "hnet"
        hnet.save(saved)
        size = sum(file.stat().st_size for file in saved.iterdir())
    step = _step(hnet, scratch_lora(corpus, outputs, how, seed), corpus, known[0])
    return {
        "lora": sum(spec.numel for spec in hnet.target.layout),
        "embedding": how.latent_dim,
        "trained": trained,
        "checkpoint": size,
        "mixed": {str(_MIXED * each): _mixed(hnet, corpus, known, each) for each in _EACH},
        "step": step,
    }


def _mixed(
    hnet: HyperNetwork, corpus: Corpus, known: Sequence[Task], each: int
) -> dict[str, float]:
    """A loop over the tasks of a mixed batch ÷ one call."""
    rng = seeded(0)
    drawn = [corpus.draw("train", task.intents, None, rng)[0] for task in known[:_MIXED]]
    rows = torch.cat([own[torch.randperm(len(own), generator=rng)[:each]] for own in drawn])
    states = corpus.inputs(rows)
    tasks = torch.arange(len(drawn)).repeat_interleave(each)

    def loop() -> torch.Tensor:
        parts = zip(states.split(each), range(len(drawn)), strict=True)
        return torch.cat([hnet(own, task=number) for own, number in parts])

    hnet.eval()
    with torch.no_grad():
        return _ratio(loop, lambda: hnet(states, task=tasks))


def _step(hnet: HyperNetwork, peft: nn.Module, corpus: Corpus, task: Task) -> dict[str, float]:
    """An update of a hypernetwork ÷ one of a LoRA from scratch."""
    rows, labels = corpus.draw("train", task.intents, _BATCH, seeded(0))
    states = corpus.inputs(rows)

    def update(model: nn.Module, **which: str) -> Callable[[], None]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(states, **which), labels).backward()
            optimizer.step()

        return run

    return _ratio(update(hnet, task=task.name), update(peft))


def _ratio(above: Callable[[], Any], below: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one ÷ those of the other, which take turns: median and quartiles."""

    def seconds(work: Callable[[], Any]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    rounds = [seconds(above) / seconds(below) for _ in range(_ROUNDS + 1)]
    low, median, high = statistics.quantiles(rounds[1:], n=4)  # the first warms up
    return {"median": median, "low": low, "high": high}
