"""New tasks for targets that take several inputs, or tokens by name."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsehyper import (
    HyperNetwork,
    Ridge,
    Sparse,
    TaskEmbedding,
    adapt_task,
    average_predictions,
    fine_tune,
    fit_embedding,
    fit_embeddings,
    identify_task,
    task_profiles,
)
from sparsehyper.adaptation import METHODS
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.ways import Start, scratch


class Both(nn.Module):
    """Takes an image and a category."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.kind = nn.Linear(6, 8), nn.Embedding(3, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, image: Tensor, kind: Tensor) -> Tensor:
        return self.head(self.norm(self.image(image) + self.kind(kind)).relu())


class Sentences(nn.Module):
    """A transformer's encoder that takes a tokenised batch by name, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Parameter(torch.zeros(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = False):
        hidden = self.words(input_ids) + self.places
        hidden = self.layer(hidden, src_key_padding_mask=attention_mask == 0)
        mask = attention_mask[..., None].to(hidden)
        logits = self.classifier((hidden * mask).sum(1) / mask.sum(1))
        return OrderedDict(hidden=hidden, logits=logits) if return_dict else logits


def two_inputs(seed: int, count: int = 60):
    rng = torch.Generator().manual_seed(seed)
    image, kind = torch.randn(count, 6, generator=rng), torch.arange(count) // 2 % 3
    return (image, kind), (image[:, 0] + kind > 1).long()


def sentences(seed: int, count: int = 60):
    """Whether a word lower than 6 begins a sentence of 2 to 5 words."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 12, (count, 5), generator=rng)
    lengths = torch.randint(2, 6, (count, 1), generator=rng)
    mask = (torch.arange(5) < lengths).long()
    tokens = {"input_ids": words * mask, "attention_mask": mask, "return_dict": True}
    return tokens, (words[:, 0] < 6).long()


KINDS = {"two inputs": (Both, two_inputs), "sentences": (Sentences, sentences)}


def made(module: type[nn.Module], **settings) -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(module(), Sparse(), TaskEmbedding(["a", "b", "c"], dim=8), **settings)


def call(model: nn.Module, x, **more):
    if isinstance(x, dict):
        return model(**x, **more)
    return model(*x, **more)


def batches(x, y, size: int = 25) -> DataLoader:
    """A DataLoader with the default collation, of single samples."""
    several = isinstance(x, dict)
    rows = range(len(y))
    if several:
        data = [({k: v[i] for k, v in x.items() if isinstance(v, Tensor)}, y[i]) for i in rows]
    else:
        data = [(tuple(part[i] for part in x), y[i]) for i in rows]
    return DataLoader(data, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS[1:])
def test_every_way_takes_what_the_target_takes(kind, method):
    module, samples = KINDS[kind]
    hnet, (x, y) = made(module), samples(1, 24)
    if method == "linear":
        with pytest.raises(ValueError, match="'linear' does not apply: its inputs are not one"):
            adapt_task(hnet, "new", (x, y), method=method, seconds=0.01)
        return
    model = adapt_task(hnet, "new", (x, y), method=method, seconds=0.01).model
    logits = call(model, x)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(24))
    torch.testing.assert_close(call(pickle.loads(pickle.dumps(model)), x), logits)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(call(again, x), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_all_ways_is_an_ordinary_model(kind):
    module, samples = KINDS[kind]
    x, y = samples(1, 40)
    adapted = adapt_task(made(module), "new", (x, y), seconds=5)
    assert "linear" not in adapted.ways
    args, kwargs = ((), x) if isinstance(x, dict) else (x, {})
    with torch.no_grad():
        exported = torch.export.export(adapted.model, args, kwargs).module()
    torch.testing.assert_close(call(exported, x), call(adapted.model, x), atol=1e-4, rtol=1e-4)


def test_attention_starts_from_scratch_too(monkeypatch):
    monkeypatch.setattr("sparsehyper.adaptation.ways._tuned", lambda _, model, *__: model)
    task = TaskSamples.of("new", sentences(1), torch.device("cpu"), n_classes=2)
    start, rows = Start(made(Sentences), (0, 1, 2), task), torch.arange(60)
    average = start.average_model(rows).layer.self_attn.in_proj_weight
    found = scratch(start, rows, 0, 0.0).layer.self_attn.in_proj_weight
    assert not torch.allclose(found, average)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_batches_are_as_good_as_tensors(kind):
    module, samples = KINDS[kind]
    x, y = samples(1)
    x = {k: v for k, v in x.items() if k != "return_dict"} if isinstance(x, dict) else x
    leaves = x.values() if isinstance(x, dict) else x
    arrays = [leaf.numpy() for leaf in leaves]
    arrays = dict(zip(x, arrays, strict=True)) if isinstance(x, dict) else tuple(arrays)
    expected = fit_embedding(made(module), "new", (x, y), steps=3).embedding
    given = [(arrays, y.numpy()), batches(x, y)]
    given += [{**x, "labels": y}] if isinstance(x, dict) else [[x, y]]
    for same in given:
        found = fit_embedding(made(module), "new", same, steps=3).embedding
        torch.testing.assert_close(found, expected)


def test_the_order_of_keys_and_flags_of_a_task_change_nothing():
    x, y = sentences(1)
    expected = fit_embedding(made(Sentences), "new", (x, y), steps=3).embedding
    parts = [{k: v[:30] if isinstance(v, Tensor) else v for k, v in x.items()}]
    parts += [{k: x[k][30:] if isinstance(x[k], Tensor) else x[k] for k in reversed(x)}]
    given = [(part, y[30 * i : 30 * i + 30]) for i, part in enumerate(parts)]
    found = fit_embedding(made(Sentences), "new", given, steps=3).embedding
    torch.testing.assert_close(found, expected)
    # Tasks that call the target in different ways are run apart.
    plain = {k: v for k, v in x.items() if k != "return_dict"}
    both = fit_embeddings(made(Sentences), {"new": (x, y), "other": (plain, y)}, steps=3)
    torch.testing.assert_close(both["new"].embedding, expected)
    torch.testing.assert_close(both["other"].embedding, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_beyond_it_and_predictions(kind):
    module, samples = KINDS[kind]
    hnet, (x, y) = made(module), samples(1)
    fits = fit_embeddings(hnet, {"d": (x, y), "e": samples(2, 20)}, restarts=2, steps=4)
    model = hnet.materialize("d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fine_tune(model, batches(x, y), tune="last", steps=3)
    last = "head" if module is Both else "classifier"
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {f"{last}.weight", f"{last}.bias"}
    predicted = average_predictions(hnet, fits["d"], x)
    torch.testing.assert_close(predicted.sum(1), torch.ones(60))


@pytest.mark.parametrize("kind", KINDS)
def test_their_tasks_are_told(kind):
    module, samples = KINDS[kind]
    hnet, (x, y) = made(module), samples(1)
    first = x["input_ids"][:, 0] if isinstance(x, dict) else x[0][:, 0]
    order = first.argsort()

    def part(rows):
        if isinstance(x, dict):
            return {k: v[rows] if isinstance(v, Tensor) else v for k, v in x.items()}
        return tuple(tensor[rows] for tensor in x)

    low, high = order[:30], order[30:]
    y = torch.arange(60) % 2
    known = {"a": (part(low), y[low]), "b": (part(high), y[high])}
    profiles = task_profiles(hnet, known)
    assert identify_task(hnet, profiles, part(high), y[high].numpy()).likeliest == "b"
    assert identify_task(hnet, profiles, part(low)).likeliest == "a"


def test_a_head_is_solved_from_two_inputs():
    hnet, (x, y) = made(Both, head=Ridge()), two_inputs(1)
    hnet.solve_head("a", batches(x, y))
    right = (hnet.eval()(*x, task="a").argmax(1) == y).float().mean()
    assert right >= 0.8
    adapted = adapt_task(hnet, "new", (x, y), method="embedding")
    assert (adapted.model(*x).argmax(1) == y).float().mean() >= 0.8


def test_numbers_for_tokens_by_a_loss_as_everyone_has_it():
    x, y = sentences(1, 30)
    y = y[:, None].expand(30, 2).float()
    mean, each = nn.MSELoss(), nn.MSELoss(reduction="none")
    losses = [
        fit_embedding(made(Sentences), "new", (x, y), steps=4, loss=loss).loss
        for loss in (mean, each, lambda outputs, y: (outputs - y).square().mean(1))
    ]
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-5)
    assert mean.reduction == "mean"
    adapted = adapt_task(made(Sentences), "new", (x, y), method="head", loss=mean, seconds=0.01)
    assert nn.functional.mse_loss(call(adapted.model, x), y) < y.var()


def test_one_number_for_each_sample():
    hnet = HyperNetwork(nn.Linear(6, 1), Sparse(), TaskEmbedding(["a", "b"], dim=8))
    x = np.random.default_rng(0).normal(size=(40, 6))
    found = adapt_task(hnet, "new", (x, x[:, :1]), loss=nn.MSELoss(), seconds=0.2)
    assert (
        nn.functional.mse_loss(found.model(torch.tensor(x).float()), torch.tensor(x[:, :1])) < 0.1
    )


def test_outputs_that_cannot_be_averaged_are_refused():
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    hnet = HyperNetwork(Pair(6, 2), Sparse(), TaskEmbedding(["a", "b"], dim=8))
    x, y = torch.randn(20, 6), torch.randn(20, 2)
    with pytest.raises(ValueError, match=r"must return logits \[n, outputs\], got 'tuple'"):
        adapt_task(hnet, "new", (x, y.argmax(1)))
    with pytest.raises(ValueError, match=r"models are averaged, .* got 'tuple'; `fit_embedding`"):
        adapt_task(hnet, "new", (x, y), loss=lambda o, y: (o[0] - y).square())
    fit_embedding(hnet, "new", (x, y), loss=lambda o, y: (o[0] - y).square(), steps=3)
