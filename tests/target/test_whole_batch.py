from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper import Dense, HyperNetwork, TaskEmbedding
from sparsehyper.adapters import lora
from sparsehyper.target import whole_batch
from sparsehyper.target.trial import EvenDraws
from sparsehyper.target.whole_batch import fits

TASK = torch.tensor([2, 0, 0, 1, 2, 2, 2])
IDS = torch.randint(0, 30, [7, 5], generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def make(target: nn.Module, **settings) -> HyperNetwork:
    torch.manual_seed(0)
    return HyperNetwork(target, Dense(), TaskEmbedding(3, 8), **settings)


def with_head(module: nn.Module, layers, head: str) -> nn.Module:
    adapted = lora(module, 1, layers)
    adapted.get_submodule(head).requires_grad_()
    return adapted


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, intermediate_size=8, num_labels=4)
    return with_head(transformers.BertForSequenceClassification(config), "query", "classifier")


def gpt() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return lora(transformers.GPT2LMHeadModel(config), 2, "c_attn")


def t5(feed_forward: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2}
    settings = {"num_layers": 1, "decoder_start_token_id": 0, "feed_forward_proj": feed_forward}
    config = transformers.T5Config(**sizes, **settings)
    return lora(transformers.T5ForConditionalGeneration(config), 1)


def convolutional() -> nn.Module:
    layers = nn.Conv2d(4, 32, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return with_head(nn.Sequential(*layers, nn.Linear(32, 3)), "0", "3")


def partial() -> nn.Module:
    """Only a bias and only a weight of linear layers are generated."""
    target = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2)).requires_grad_(False)
    target[0].bias.requires_grad_()
    target[2].weight.requires_grad_()
    return target


def adapted(module: nn.Module) -> nn.Module:
    return lora(module, 1)


class SequenceFirst(nn.Module):
    """The samples are in the second dimension of what the adapted layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).mean(0)


class ByWeight(nn.Module):
    """Computes with the weight of an adapted layer, of which there is none for many tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x.to(self.layer.weight.dtype) @ self.layer.weight


class Centred(nn.Module):
    """What a sample gives depends on the others of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class CentredInTraining(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


class OwnNorm(nn.Module):
    """A batch norm that is none of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(20))
        self.register_buffer("var", torch.ones(20))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class Skipping(nn.Module):
    """Random numbers from PyTorch: one for each sample, noise, and one for all."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1) < 0.9
        noise = torch.randn_like(x) + torch.zeros_like(x).normal_() + torch.empty_like(x).uniform_()
        return F.dropout(x * kept + noise, 0.3, True) * torch.rand(())


class SkippingByNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.random() < 2)  # noqa: NPY002


def passes(hnet: HyperNetwork, run: Callable[[], object]) -> int:
    """The number of forward passes of the target's module in a run."""
    count = 0

    def counted(*_) -> None:
        nonlocal count
        count += 1

    hook = hnet.target.module.register_forward_hook(counted)
    run()
    hook.remove()
    return count


def gradients(hnet: HyperNetwork, out: Tensor) -> dict[str, Tensor]:
    hnet.zero_grad()
    out.square().sum().backward()
    return {name: p.grad.clone() for name, p in hnet.named_parameters() if p.grad is not None}


def logits(out) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (bert, IDS),
        (gpt, IDS),
        (convolutional, torch.randn(7, 4, 4, 4)),
        (lambda: lora(nn.Sequential(nn.Embedding(30, 16), nn.Flatten()), 1, "0"), IDS),
        (partial, torch.randn(7, 20)),
    ],
)
def test_one_run_of_the_target_equals_a_loop_over_the_tasks(build, x):
    hnet = make(build()).eval()
    hnet(x, task=TASK)  # the trial
    assert passes(hnet, lambda: hnet(x, task=TASK)) == 1
    together = logits(hnet(x, task=TASK))
    alone = [logits(hnet(x[i : i + 1], task=int(number))) for i, number in enumerate(TASK)]
    torch.testing.assert_close(together, torch.cat(alone))
    expected = gradients(hnet, torch.cat(alone))
    found = gradients(hnet, logits(hnet(x, task=TASK)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda: adapted(SequenceFirst()), torch.randn(7, 7, 20)),
        (lambda: adapted(ByWeight()), torch.randn(7, 20)),
        (lambda: adapted(nn.Sequential(nn.Linear(20, 20), Centred())), torch.randn(7, 20)),
        (lambda: adapted(nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20))), torch.randn(7, 20)),
        (lambda: adapted(nn.TransformerEncoderLayer(20, 2, 20)), torch.randn(7, 3, 20)),
        (lambda: nn.Sequential(nn.Linear(20, 20), nn.LayerNorm(20)), torch.randn(7, 20)),
        (lambda: nn.Linear(20, 20), torch.randn(7, 20)),  # there is nothing to share
    ],
)
def test_targets_that_cannot_serve_all_samples_in_one_run_have_more(build, x):
    hnet = make(build()).eval()
    hnet(x, task=TASK)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == 3
    for task in range(3):
        own = task == TASK
        torch.testing.assert_close(hnet(x, task=TASK)[own], hnet(x[own], task=task))


class ByHead(nn.Module):
    """Frozen layers, a head that is generated, and what is computed by the head's weight."""

    def __init__(self, compute: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.compute = nn.Linear(20, 20), nn.Linear(20, 2), compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.head, self.body(x))


@pytest.mark.parametrize(
    ("compute", "runs"),
    [
        (lambda head, x: head(x) + head.weight.square().sum(), 3),
        (lambda head, x: F.linear(x, F.normalize(head.weight), head.bias), 3),
        (lambda head, x: head(x) + head.bias.mean(), 3),
        (lambda head, x: head(x) / head.weight.shape[1] ** 0.5 * head.bias.ndim, 1),
        (lambda head, x: head(x.to(head.weight.dtype)) * head.weight.size(0), 1),
        (lambda head, x: head(x.to(head.weight).type_as(head.bias)) * len(head.weight), 1),
        (lambda head, x: head(x) * head.weight.to(torch.float64).sum().float(), 3),
    ],
)
def test_the_weight_of_a_generated_head_is_that_of_one_task(compute, runs):
    hnet, x = make(ByHead(compute), generate="head.*").eval(), torch.randn(7, 20)
    hnet(x, task=TASK)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == runs
    for task in range(3):
        own = task == TASK
        torch.testing.assert_close(hnet(x, task=TASK)[own], hnet(x[own], task=task))


def test_a_penalty_of_the_weights_is_refused_as_a_loss_is():
    hnet = make(ByHead(lambda head, _: head.weight.square().sum()), generate="head.*")
    with pytest.raises(ValueError, match=r"the batch as its first dimension, got shape \[\]"):
        hnet(torch.randn(7, 20), task=TASK)


def test_under_autocast_a_batch_of_many_tasks_has_the_dtype_of_one():
    hnet = make(ByHead(lambda head, x: head(x)), generate="head.*").eval()
    x = torch.randn(7, 20)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert hnet(x, task=TASK).dtype == hnet(x, task=0).dtype == dtype
            assert passes(hnet, lambda: hnet(x, task=TASK)) == 1


class Steps(nn.Module):
    """Sequences: a layer, and then a change that may depend on their length."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(20, 20), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    "build",
    [
        Flattened,
        lambda: Steps(lambda y: y - y.mean(0) if y.shape[1] > 1 else y),
        lambda: Steps(lambda y: y.flip(0) if y.shape[1] == 2 else y),
    ],
)
def test_what_is_found_out_of_one_length_does_not_hold_for_another(build):
    hnet = make(adapted(build())).eval()
    for length in (1, 2, 3):
        x = torch.randn(7, length, 20)
        together = hnet(x, task=TASK)
        for task in range(3):
            own = task == TASK
            torch.testing.assert_close(together[own], hnet(x[own], task=task))


@pytest.mark.parametrize("mixing", [False, True])
def test_lengths_that_change_with_every_batch_need_few_trials(mixing, monkeypatch):
    trials, found = [], whole_batch._agrees
    monkeypatch.setattr(whole_batch, "_agrees", lambda *a: trials.append(1) or found(*a))
    target = Steps(lambda y: y - y.mean(0) if mixing and y.shape[1] == 3 else y)
    hnet = make(adapted(target)).eval()
    for length in range(1, 30):
        hnet(torch.randn(7, length, 20), task=TASK)
    assert len(trials) == 8
    x = torch.randn(7, 30, 20)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == (3 if mixing else 1)


class Pooled(nn.Module):
    """A layer, and the mean of the steps of a sequence, of which each sample has its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor, lengths) -> Tensor:
        steps = [own[: int(n)].mean(0) for own, n in zip(x, lengths, strict=True)]
        return self.layer(torch.stack(steps))


def test_arrays_are_of_samples_as_tensors_are():
    hnet, x, lengths = make(adapted(Pooled())).eval(), torch.randn(7, 9, 20), np.arange(1, 8)
    together = hnet(x, lengths, task=TASK)
    assert passes(hnet, lambda: hnet(x, lengths, task=TASK)) == 1
    alone = [hnet(x[[i]], lengths[[i]], task=int(TASK[i])) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.filterwarnings("ignore:buffer .* changes in training")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm", [CentredInTraining, OwnNorm])
def test_a_target_that_mixes_samples_in_training_has_one_run_in_evaluation_only(
    norm, first, training
):
    hnet = make(adapted(nn.Sequential(nn.Linear(20, 20), norm())))
    x, task = torch.randn(6, 20), torch.tensor([0, 1, 1, 0, 2, 2])
    hnet.train(first)(x, task=task)  # what is found in one mode does not hold for the other
    hnet.train(training)(x, task=task)
    assert passes(hnet, lambda: hnet(x, task=task)) == (3 if training else 1)
    for number in range(3):
        own = task == number
        torch.testing.assert_close(hnet(x, task=task)[own], hnet(x[own], task=number))
    hnet.train().target.module[1].eval()  # the mode of a part counts, not that of the whole
    hnet(x, task=task)
    assert passes(hnet, lambda: hnet(x, task=task)) == 1


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (bert, IDS),  # dropout of layers and of attention
        (lambda: adapted(nn.Sequential(nn.Linear(20, 20), Skipping())), torch.randn(7, 20)),
    ],
)
def test_random_numbers_of_training_are_no_reason_for_more_runs(build, x):
    hnet = make(build()).train()
    hnet(x, task=TASK)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == 1


def test_tasks_draw_for_themselves_from_the_random_numbers_of_numpy():
    hnet = make(adapted(nn.Sequential(nn.Linear(20, 20), SkippingByNumpy())))
    x, state = torch.randn(7, 20), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert not fits(hnet.target, hnet.raw_theta(torch.randn(3, 8)), ((x,), {}), 7)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize("p", [0.1, 0.9])
def test_nothing_is_dropped_out_while_draws_are_even(p):
    x = torch.randn(50)
    with EvenDraws():
        torch.testing.assert_close(torch.native_dropout(x, p, True)[0], x)
        assert F.dropout(x, p).div(x).unique().numel() <= 2  # one but for rounding
        torch.testing.assert_close(torch.ones(3).bernoulli_(p), torch.full((3,), 0.5))


def test_a_buffer_that_changes_in_one_run_for_all_tasks_is_told_of():
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(20))

        def forward(self, x: Tensor) -> Tensor:
            self.average.lerp_(x.mean(0).detach(), 0.1)
            return x

    hnet = make(adapted(nn.Sequential(nn.Linear(20, 20), Average())))
    with pytest.warns(UserWarning, match=r"buffer '1\.average' of the target changes in training"):
        hnet(torch.randn(7, 20), task=TASK)
    assert passes(hnet, lambda: hnet(torch.randn(7, 20), task=TASK)) == 1


class CentredAlong(nn.Module):
    """A layer, and then an argument of any kind that says which dimension to centre."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor, dim) -> Tensor:
        y = self.layer(x)
        return y - y.mean(int(dim), keepdim=True)


@pytest.mark.parametrize("kind", [int, float, np.array])
def test_what_is_found_out_holds_for_equal_arguments_only(kind):
    hnet = make(adapted(CentredAlong())).eval()
    x = torch.randn(7, 20)
    for dim in map(kind, (1, 0)):
        out = hnet(x, dim, task=TASK)
        for number in range(3):
            own = number == TASK
            torch.testing.assert_close(out[own], hnet(x[own], dim, task=number))


class Scaled(nn.Module):
    """A layer, and then an argument that is a number or has one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor, scale) -> Tensor:
        return self.layer(x) * getattr(scale, "value", scale)


class Context:
    def __init__(self, value: float) -> None:
        self.value = value


@pytest.mark.parametrize("kind", [float, Context])
def test_an_argument_that_changes_with_every_batch_needs_few_trials(kind, monkeypatch):
    trials, found = [], whole_batch._agrees
    monkeypatch.setattr(whole_batch, "_agrees", lambda *a: trials.append(1) or found(*a))
    hnet = make(adapted(Scaled())).eval()
    x = torch.randn(7, 20)
    given = []
    for i in range(1, 20):
        scale = kind(i / 7)
        out = hnet(x, scale, task=TASK)
        torch.testing.assert_close(out[:1], hnet(x[:1], scale, task=2))
        if kind is Context:
            given.append(weakref.ref(scale))
    del scale
    assert len(trials) == 8
    assert not any(each() for each in given)


class Two(nn.Module):
    """Two outputs, the second of which has been changed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(20, 20), change

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, self.change(y)


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        (lambda y: torch.cat([y - y.mean(0), torch.full_like(y, torch.inf)], 1), 3),
        (lambda y: torch.cat([y - y.mean(0), torch.full_like(y, torch.nan)], 1), 3),
        (lambda y: torch.complex(torch.ones_like(y), y - y.mean(0)), 3),
        (lambda y: torch.complex(torch.ones_like(y), y), 1),
        (torch.zeros_like, 1),
        (lambda y: y > 0, 1),
    ],
)
def test_every_output_counts_and_all_of_it(change, runs):
    hnet = make(adapted(Two(change))).eval()
    x = torch.randn(7, 20)
    hnet(x, task=TASK)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == runs


def test_the_loss_of_a_mixed_batch_is_that_of_an_ordinary_one():
    hnet = make(gpt()).eval()
    labels = IDS.clone()
    labels[:4, 1:] = -100  # some samples count for less
    out = hnet(input_ids=IDS, labels=labels, task=TASK)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_a_target_may_ask_for_the_dtype_of_a_changed_weight(feed_forward):
    hnet = make(t5(feed_forward)).eval()
    labels = IDS.clone()
    labels[:4, 1:] = -100
    out = hnet(input_ids=IDS, labels=labels, task=TASK)
    torch.testing.assert_close(
        out.loss, F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    )
    alone = [
        hnet(input_ids=IDS[[i]], labels=labels[[i]], task=int(number)).logits
        for i, number in enumerate(TASK)
    ]
    torch.testing.assert_close(out.logits, torch.cat(alone))


def test_the_trial_changes_nothing():
    hnet = make(bert())
    state, before = torch.get_rng_state(), [p._version for p in hnet.parameters()]
    with torch.no_grad():
        hnet.eval()(IDS, task=TASK)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p._version for p in hnet.parameters()] == before
    assert not any(m.training for m in hnet.target.module.modules())


def test_tensors_of_samples_that_take_too_much_memory_are_not_made(monkeypatch):
    monkeypatch.setattr("sparsehyper.target.whole_batch._MOST_NUMBERS", 1)
    monkeypatch.setattr("sparsehyper.target.whole_batch._LEAST_SHARED", 0)
    target = nn.Linear(2, 2)
    target.bias.requires_grad_(False)
    hnet = make(target).eval()
    x = torch.randn(7, 2)
    assert passes(hnet, lambda: hnet(x, task=TASK)) == 3


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("task", [1, TASK])
def test_gradient_checkpointing_of_transformers_changes_nothing(reentrant, task):
    def one(saving: bool) -> dict[str, Tensor]:
        hnet = make(bert())
        module = hnet.train().target.module
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if saving:
            module.gradient_checkpointing_enable({"use_reentrant": reentrant})
            module.enable_input_require_grads()
        return gradients(hnet, hnet(IDS, task=task).logits)

    torch.testing.assert_close(one(True), one(False))
