from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptation.conftest import layer_normed, normed, plain, samples
from sparsehyper import fine_tune

CHANGED = {
    "norm": {"1.weight", "1.bias"},
    "last": {"3.weight", "3.bias"},
    "all": {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"},
}


def loss(model, x, y):
    return nn.functional.cross_entropy(model.eval()(x), y).item()


@pytest.mark.parametrize("tune", CHANGED)
@pytest.mark.parametrize("make", [normed, layer_normed])
def test_trains_what_it_names_and_nothing_else(tune, make):
    torch.manual_seed(0)
    model, (x, y) = make(), samples(3)
    before, first = {k: v.clone() for k, v in model.state_dict().items()}, loss(model, x, y)
    model.train()
    fine_tune(model, (x, y), tune=tune, lr=1e-2)
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert {name for name in before if not torch.equal(after[name], before[name])} == CHANGED[tune]
    assert loss(model, x, y) < first - 0.02
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_norms_of_a_model_that_never_saw_the_task_are_renewed():
    model, (x, y) = normed(), samples(3, 100)
    fine_tune(model, (x, y), norm_stats="renewed")
    inputs = model[0](x)
    torch.testing.assert_close(model[1].running_mean, inputs.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model[1].running_var, inputs.var(0), atol=1e-4, rtol=1e-4)
    assert model[1].momentum == 0.1
    with pytest.raises(ValueError, match=r"`norm_stats` must be one of .*got 'new'"):
        fine_tune(model, (x, y), norm_stats="new")


def test_refuses_what_a_model_lacks():
    with pytest.raises(ValueError, match="no parameters that `tune` 'norm' names"):
        fine_tune(plain(), samples(0), tune="norm")
    with pytest.raises(ValueError, match=r"`tune` must be one of .*got 'first'"):
        fine_tune(plain(), samples(0), tune="first")
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+; lower `lr`"):
        fine_tune(plain(), samples(0), lr=1e30)
    with pytest.raises(ValueError, match="has 5 classes, the target has 3 outputs"):
        fine_tune(plain(), samples(0), n_classes=5)
