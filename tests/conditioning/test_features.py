from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsehyper import (
    Dense,
    HyperNetwork,
    TaskEmbedding,
    TaskFeatures,
    adapt_task,
    fit_embedding,
)

WORDS = ["red", "green", "blue", "square", "round"]


def encode(sentences: list[str]) -> Tensor:
    """A sentence encoder: which words there are."""
    return torch.tensor([[float(word in text) for word in WORDS] for text in sentences])


def samples(text: str, count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Things, and whether they are as the sentence says."""
    x = torch.randn(count, len(WORDS), generator=torch.Generator().manual_seed(seed))
    return x, (x @ encode([text])[0] > 0).long()


def trained() -> HyperNetwork:
    """Knows some pairs of a colour and a form."""
    texts = [f"{a} and {b}" for a, b in [("red", "square"), ("green", "round"), ("blue", "square")]]
    texts += ["red", "round", "green", "blue and red", "square"]
    tasks = TaskFeatures(dict(zip(texts, encode(texts), strict=True)), 8, hidden=16)
    hnet = HyperNetwork(torch.nn.Linear(len(WORDS), 2), Dense(), tasks)
    optimizer = torch.optim.Adam(hnet.parameters(), 0.01)
    for step in range(200):
        text = texts[step % len(texts)]
        x, y = samples(text, seed=step)
        loss = F.cross_entropy(hnet(x, task=text), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return hnet.eval()


def accuracy(hnet: HyperNetwork, name: str, text: str) -> float:
    x, y = samples(text, 1000, seed=10**6)
    return float((hnet(x, task=name).argmax(1) == y).float().mean())


def tables(hnet: HyperNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in hnet.state_dict().items()}


@pytest.mark.parametrize("adapt", [False, True])
def test_a_task_works_from_its_description_and_examples_refine_it(tmp_path, adapt):
    hnet = trained()
    before, known = tables(hnet), hnet(samples("red")[0], task="red")
    hnet.add_task("ours", encode(["blue and round"])[0])
    described = accuracy(hnet, "ours", "blue and round")
    assert described > 0.85
    x, y = samples("blue and round and green", 200)  # the description left something out
    assert accuracy(hnet, "ours", "blue and round and green") < 0.85
    if adapt:
        adapt_task(hnet, "ours", (x, y), method="embedding")
    else:
        fit = fit_embedding(hnet, "ours", (x, y))
        torch.testing.assert_close(hnet.embedding("ours"), fit.embedding)
    assert accuracy(hnet, "ours", "blue and round and green") > 0.9
    assert torch.equal(hnet(samples("red")[0], task="red"), known)
    for name, value in tables(hnet).items():
        if name not in ("notes", "conditioner.features", "conditioner.offsets"):
            assert torch.equal(value, before[name]), name
    hnet.save(tmp_path / "model")
    loaded = HyperNetwork.load(tmp_path / "model", torch.nn.Linear(len(WORDS), 2)).eval()
    assert torch.equal(loaded(x, task="ours"), hnet(x, task="ours"))


def test_offsets_follow_their_tasks():
    hnet = HyperNetwork(
        torch.nn.Linear(3, 2), Dense(), TaskFeatures({n: torch.rand(4) for n in "abc"}, 8)
    )
    plain = {name: hnet.embedding(name) for name in "abc"}
    hnet.conditioner.refine(1, torch.arange(8.0))
    hnet.add_task("d", torch.rand(4))
    assert hnet.conditioner.offsets[3].tolist() == [0.0] * 8
    hnet.remove_task("a")
    torch.testing.assert_close(hnet.embedding("b"), torch.arange(8.0))
    torch.testing.assert_close(hnet.embedding("c"), plain["c"])
    both = hnet.conditioner(torch.tensor([0, 1]))
    torch.testing.assert_close(both, torch.stack([torch.arange(8.0), plain["c"]]))


def test_a_state_dict_of_refined_tasks_fits_a_fresh_hypernetwork():
    def make():
        features = {name: torch.ones(4) for name in "ab"}
        return HyperNetwork(torch.nn.Linear(3, 2), Dense(), TaskFeatures(features, 8))

    refined, fresh = make(), make()
    plain = refined.state_dict()
    refined.conditioner.refine(1, torch.arange(8.0))
    fresh.load_state_dict(refined.state_dict())
    torch.testing.assert_close(fresh.embedding("b"), torch.arange(8.0))
    fresh.load_state_dict(plain)
    torch.testing.assert_close(fresh.embedding("b"), make().embedding("b"))


def test_the_fit_starts_at_the_description():
    hnet = HyperNetwork(
        torch.nn.Linear(5, 2), Dense(), TaskFeatures({n: torch.rand(4) for n in "abc"}, 8)
    )
    x, y = samples("red")
    start = hnet.normalise(hnet.embedding("b"))
    fit = fit_embedding(hnet, "b", (x, y), steps=2)
    assert F.cosine_similarity(fit.embedding, start, dim=0) > 0.5


def test_what_was_not_described_is_refused():
    hnet = HyperNetwork(torch.nn.Linear(5, 2), Dense(), TaskFeatures({"a": torch.rand(4)}, 8))
    for refine in (fit_embedding, adapt_task):
        with pytest.raises(KeyError, match="unknown `task` 'b'"):
            refine(hnet, "b", samples("red"))
    assert hnet.task_names == ("a",)
    learned = HyperNetwork(torch.nn.Linear(5, 2), Dense(), TaskEmbedding(2, 8))
    with pytest.raises(ValueError, match=r"`init` must be one of .*; got 'own'"):
        fit_embedding(learned, "b", samples("red"), init="own")
    with pytest.raises(ValueError, match=r"`z` must have shape \[8\], got \[7\]"):
        hnet.conditioner.refine(0, torch.zeros(7))
