"""Every generator with every form of target, each with some conditioners, all small; any two of
generator, form and conditioner occur together.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper import (
    Butterfly,
    Chunked,
    Composed,
    Dense,
    HyperNetwork,
    InputAndTask,
    InputEncoder,
    LowRank,
    Noise,
    Sparse,
    SupportSet,
    TaskEmbedding,
    TaskExamples,
    TaskFeatures,
)
from sparsehyper.adapters import film, lora, masked
from sparsehyper.layout import plan_layout

DIM = 6
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(7) % 3

GENERATORS = {
    "dense": Dense(),
    "dense MLP": Dense(hidden=9),
    "chunked": Chunked(5),
    "chunks of tensors": Chunked(5, by="tensor"),
    "filters": Chunked(by="filter"),
    "sparse": Sparse(),
    "sparse affine": Sparse(bias=True),
    "sparse MLP": Sparse(activation="prelu"),
    "sparse MLP with bias": Sparse(activation="leaky_relu", bias=True),
    "sparse, shared": Sparse(share=3),
    "butterfly": Butterfly(),
    "Beneš": Butterfly(benes=True),
    "low rank": LowRank(1),
    "composed": lambda layout: Composed({layout[0].name: Dense(), "*": Sparse()}),
}


def encoder():
    return nn.Linear(4, DIM)


# How it is made, and what `task` is for a batch of inputs.
CONDITIONERS = {
    "nothing": (lambda: TaskEmbedding(1, DIM), None),
    "task": (lambda: TaskEmbedding(["a", "b", "c"], DIM), "b"),
    "a task per sample": (lambda: TaskEmbedding(3, DIM), Y),
    "features": (lambda: TaskFeatures({"a": torch.rand(5), "b": torch.rand(5)}, DIM), "a"),
    "input": (lambda: InputEncoder(encoder(), DIM), None),
    "batch": (lambda: InputEncoder(encoder(), DIM, per="batch"), None),
    "input and task": (
        lambda: InputAndTask(InputEncoder(encoder(), DIM), TaskEmbedding(3, DIM)),
        Y,
    ),
    "batch and task": (
        lambda: InputAndTask(InputEncoder(encoder(), DIM, per="batch"), TaskEmbedding(3, DIM)),
        2,
    ),
    "support set": (lambda: SupportSet(encoder(), DIM, n_classes=3, dim=DIM), (X, Y)),
    "examples": (
        lambda: TaskExamples(
            SupportSet(encoder(), DIM, n_classes=3, dim=DIM), ["a", "b"], lambda _: (X, Y)
        ),
        "a",
    ),
    "noise": (lambda: Noise(DIM), None),
    "noise per sample": (lambda: Noise(DIM, per="sample"), None),
}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def frozen_head():
    target = module()
    target[3].requires_grad_(False)
    return target


# The target, and settings of the hypernetwork.
FORMS = {
    "all": (module, {}),
    "some": (module, {"generate": "3.*"}),
    "not what is frozen": (frozen_head, {}),
    "delta": (module, {"base": "pretrained"}),
    "residual": (module, {"base": "residual"}),
    "LoRA": (lambda: lora(module(), rank=2), {}),
    "FiLM": (lambda: film(module()), {}),
    "mask": (lambda: masked(module(), 0.5), {}),
    "learned mask": (
        lambda: masked(module(), 0.5, learned=True),
        {"generate": lambda name, _: not name.endswith("scores")},
    ),
}


ONE_IN = 4


def conditioners_for(generator, form):
    """One conditioner in four, others for each generator and form."""
    start = [*GENERATORS].index(generator) + [*FORMS].index(form)
    return {name: CONDITIONERS[name] for name in [*CONDITIONERS][start % ONE_IN :: ONE_IN]}


def test_any_two_occur_together():
    pairs = [(g, f) for g in GENERATORS for f in FORMS]
    met = {(one, name) for pair in pairs for one in pair for name in conditioners_for(*pair)}
    assert met == {(one, name) for one in (*GENERATORS, *FORMS) for name in CONDITIONERS}


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("form", FORMS)
def test_every_two(generator, form, tmp_path):
    make, settings = FORMS[form]
    spec = GENERATORS[generator]
    if callable(spec):
        spec = spec(plan_layout(make(), settings.get("generate", "*")))
    for name, (condition, task) in conditioners_for(generator, form).items():
        torch.manual_seed(2)
        hnet = HyperNetwork(make(), spec, condition(), **settings)
        torch.manual_seed(3)
        out = hnet(X, task=task)
        assert out.shape == (7, 3), name
        out.square().sum().backward()
        for parameter, tensor in hnet.named_parameters():
            if tensor.requires_grad:
                assert tensor.grad is not None, (name, parameter)
                assert tensor.grad.isfinite().all(), (name, parameter)
                assert tensor.grad.abs().sum() > 0, (name, parameter)

        if isinstance(hnet.conditioner, TaskExamples):
            hnet.conditioner.renew()
        hnet.save(tmp_path / name)
        loaded = HyperNetwork.load(tmp_path / name, make(), condition())
        loaded.eval(), hnet.eval()
        torch.manual_seed(3)
        again = loaded(X, task=task)
        torch.manual_seed(3)
        torch.testing.assert_close(again, hnet(X, task=task))

        z = hnet.embedding(1 if name == "a task per sample" else task, X)
        z = z if z.ndim == 1 else z[0]
        plain = hnet.materialize(z)
        assert [*plain.state_dict()] == [*module().state_dict()]
        assert not any("sparsehyper" in type(m).__module__ for m in plain.modules())
        torch.testing.assert_close(plain(X), hnet(X, task=z), atol=1e-5, rtol=1e-5)
