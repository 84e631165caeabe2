from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers.small_tasks import layer_normed, normed, plain, samples
from sparsehyper import fine_tune
from sparsehyper.adaptation.samples import TaskSamples, Unsuitable
from sparsehyper.adaptation.tune import descend

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


class UsedTwice(nn.Module):
    """Its batch norm sees the inputs, and the inputs plus 10."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(1, affine=False), nn.Linear(1, 2)

    def forward(self, x):
        self.norm(x)
        return self.last(self.norm(x + 10))


@pytest.mark.parametrize("count", [40, 1000])  # one piece, and several
def test_renewed_statistics_are_the_mean_over_all_uses_of_a_norm(count):
    model, x = UsedTwice().eval(), torch.randn(count, 1)
    fine_tune(model, (x, (x[:, 0] > 0).long()), steps=1, norm_stats="renewed")
    torch.testing.assert_close(model.norm.running_mean, x.mean(0) + 5, atol=0.1, rtol=0)
    assert model.norm.momentum == 0.1


def test_only_batch_norms_leave_evaluation_mode_while_statistics_are_renewed():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_level", torch.zeros(()))

        def forward(self, x):
            assert not self.training
            return x

    model = nn.Sequential(nn.BatchNorm1d(3), Other(), nn.Linear(3, 2)).eval()
    x = torch.randn(20, 3)
    fine_tune(model, (x, (x[:, 0] > 0).long()), steps=1, norm_stats="renewed")


def test_numbers_are_fitted_by_their_squares():
    x, y = samples(3)
    torch.manual_seed(0)
    models = [model := plain(), copy.deepcopy(model)]
    fine_tune(models[0], (x, x[:, :3]))
    fine_tune(models[1], (x, x[:, :3]), loss=nn.MSELoss())
    for a, b in zip(*[model.parameters() for model in models], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"\[n\] for outputs \[n, 3\]; class numbers must be int"):
        fine_tune(models[0], (x, y.float()))


def test_refuses_what_a_model_lacks():
    with pytest.raises(ValueError, match="no parameters that `tune` 'norm' names"):
        fine_tune(plain(), samples(0), tune="norm")
    with pytest.raises(ValueError, match=r"`tune` must be one of .*got 'first'"):
        fine_tune(plain(), samples(0), tune="first")
    with pytest.raises(ValueError, match=r"is (nan|inf) at step \d+; .*, or lower `lr`"):
        fine_tune(plain(), samples(0), lr=1e30)
    with pytest.raises(
        ValueError, match="has 5 classes, the model has 3 outputs; give its last layer"
    ):
        fine_tune(plain(), samples(0), n_classes=5)


class LastFirst(nn.Module):
    """Declares its layers in an order other than that of their use; one is not used at all."""

    def __init__(self, norm):
        super().__init__()
        self.head, self.norm, self.body = nn.Linear(12, 3), norm, nn.Linear(6, 12)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(nn.functional.dropout(self.norm(self.body(x)), 0.5, self.training).relu())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(12), nn.BatchNorm1d(12, track_running_stats=False)]
)
def test_the_last_layer_is_the_one_used_last(norm):
    torch.manual_seed(0)
    model = LastFirst(copy.deepcopy(norm)).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fine_tune(model, samples(3), tune="last")
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert changed == ["head.weight", "head.bias"]
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_a_model_that_uses_no_linear_layer_has_no_last_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.unused = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

        def forward(self, x):
            return x * self.scale

    with pytest.raises(ValueError, match="no parameters that `tune` 'last' names"):
        fine_tune(Net(), samples(0), tune="last")


class Gated(nn.Module):
    """Weighs its experts by a gate, the linear layer that is used last."""

    def __init__(self):
        super().__init__()
        self.expert, self.other, self.gate = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        experts = self.expert(x), self.other(x)
        return torch.lerp(*experts, self.gate(x).sigmoid())


class Unrelated(nn.Module):
    """Its output has nothing to do with the linear layer that is used last."""

    def __init__(self):
        super().__init__()
        self.body, self.other = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        out = self.body(x)
        self.other(x)
        return out


@pytest.mark.parametrize(("module", "layer"), [(Gated(), "gate"), (Unrelated(), "other")])
def test_a_last_layer_that_does_not_decide_the_output_is_refused(module, layer):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=f"'last' .* that of '{layer}', which .* give 'all'"):
        fine_tune(module, samples(0), tune="last")
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("zeros", [False, True])
def test_what_follows_the_last_layer_may_change_its_output(zeros):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(1))
    if zeros:
        nn.init.zeros_(model[2].weight)
    first = model[0].weight.clone()
    (x, y), before = samples(3), model[2].weight.clone()
    fine_tune(model, (x, y), tune="last", steps=3)
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[2].weight, before)


def test_gradients_are_taken_within_no_grad_and_refused_in_inference_mode():
    torch.manual_seed(0)
    first, second = plain(), plain()
    second.load_state_dict(first.state_dict())
    fine_tune(first, samples(3), steps=3)
    with torch.no_grad():
        fine_tune(second, samples(3), steps=3)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"`torch.inference_mode\(\)`"):
        fine_tune(plain(), samples(3))


def test_samples_that_are_not_finite_are_said_to_be_the_reason():
    x, y = samples(3)
    x[4, 1] = torch.nan
    message = r"loss of task 'samples' is nan at step 1; look at its samples, or lower `lr`"
    with pytest.raises(ValueError, match=message):
        fine_tune(plain(), (x, y))


def test_without_time_the_first_loss_is_still_looked_at():
    model = plain()
    before = copy.deepcopy(model.state_dict())
    for value in (0.0, torch.nan):
        x, y = samples(3)
        task = TaskSamples.of("new", (x + value, y), x.device, n_classes=3)
        given = (model, list(model.parameters()), task, 9, 1e-2, 64, 0, None)
        if value == 0:
            descend(*given, deadline=0.0)
        else:
            with pytest.raises(Unsuitable, match="the loss of task 'new' is nan at step 1"):
                descend(*given, deadline=0.0)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])


def test_a_hypernetwork_is_no_ordinary_model(make):
    with pytest.raises(TypeError, match=r"`model` must be .* got a HyperNetwork; .*materialize"):
        fine_tune(make(), samples(0))
