from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper.lab.runs import Experts, SharedTrunk, build_target
from sparsehyper.lab.runs.probes import best_of, fit_last_layer


def samples(n_classes=4, each=6, seed=0):
    """Images of noise around one picture for each class."""
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randn(n_classes, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    y = torch.arange(n_classes).repeat(each)
    return pictures[y] + 0.5 * torch.randn(len(y), 1, 8, 8, generator=rng), y


def test_a_last_layer_of_another_size_tells_new_classes_apart():
    module, (x, y) = build_target("mlp:32", (1, 8, 8), 2).eval(), samples()
    before = copy.deepcopy(module[1])
    loss = fit_last_layer(module, x, y, 4)
    assert module(x).shape == (24, 4)
    new_x, new_y = samples(seed=1)
    assert (module(new_x).argmax(1) == new_y).float().mean() > 0.9
    assert torch.equal(module[1].weight, before.weight)
    # The leave-one-out loss is about what new images have, so the logits are calibrated.
    with torch.no_grad():
        assert float(F.cross_entropy(module(new_x), new_y)) == pytest.approx(loss, abs=0.25)


def test_copies_of_an_image_do_not_judge_it():
    x, y = samples()
    y = y[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    module = build_target("mlp:32", (1, 8, 8), 2).eval()
    losses = [
        fit_last_layer(copy.deepcopy(module), x.repeat(n, 1, 1, 1), y.repeat(n), 4) for n in (1, 5)
    ]
    assert min(losses) > 1.2


@pytest.mark.parametrize("each", [1, 2])
def test_few_images_of_a_class_do_not_mislead(each):
    x, y = samples(each=each)
    if each == 2:  # one class has one image
        x, y = x[:-1], y[:-1]
    module = build_target("mlp:32", (1, 8, 8), 2).eval()
    loss = fit_last_layer(module, x, y, 4)
    assert math.isinf(loss) == (each == 1)
    with torch.no_grad():
        new_x, new_y = samples(seed=1)
        assert float(F.cross_entropy(module(new_x), new_y)) < 1


def test_the_module_with_the_better_features_is_taken():
    x, y = samples()
    blind = build_target("mlp:32", (1, 8, 8), 3).eval()
    nn.init.zeros_(blind[1].weight)
    seeing = build_target("mlp:32", (1, 8, 8), 2).eval()
    for modules in ([blind, seeing], [seeing, blind]):
        assert best_of(copy.deepcopy(modules), x, y, 4)(x).argmax(1).eq(y).float().mean() > 0.9


def test_a_module_whose_last_linear_layer_is_not_its_output():
    wrapped = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.AvgPool1d(2))
    with pytest.raises(ValueError, match=r"must end in an nn.Linear, .* shape \[3\]"):
        fit_last_layer(wrapped, *samples(), 4)


@pytest.mark.parametrize("target", ["mlp:16", "cnn:4/masked:0.5"])
def test_models_of_baselines_are_ordinary_ones(target):
    x = torch.randn(3, 1, 8, 8)
    trunk = SharedTrunk(build_target(target, (1, 8, 8), 3), ["a", "b"]).eval()
    experts = Experts(lambda: build_target(target, (1, 8, 8), 3), ["a", "b"]).eval()
    for model in (trunk, experts):
        for task, name in enumerate("ab"):
            module = model.materialize(name).eval()
            torch.testing.assert_close(module(x), model(x, task=task))
            plain = build_target(target.partition("/")[0], (1, 8, 8), 3)
            plain.load_state_dict(module.state_dict())
        with pytest.raises(IndexError, match=r"`task` must be in \[0, 2\), got 2"):
            model.materialize(2)
