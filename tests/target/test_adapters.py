from __future__ import annotations

import copy
import math
import pickle

import peft
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from helpers.small_targets import Tied
from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.adapters import film, lora, masked, merge
from sparsehyper.layout import owner_of
from sparsehyper.target.initialisation import initial_moments


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, padding=1, padding_mode="reflect"),
        nn.Flatten(),
        nn.Linear(6 * 9, 2),
    )


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True)


# Module, shape of its input, names of layers.
MODULES = {
    "mlp": (mlp, (5, 4), "*"),
    "convolutions": (convolutions, (5, 2, 4, 4), "*"),
    "transformer": (transformer, (5, 3, 8), ["linear1", "linear2"]),
}
ADAPTERS = {
    "lora": lambda module, layers="*": lora(module, 2, layers, alpha=3),
    "film": film,
    "masked": lambda module, layers="*": masked(module, 0.75, layers),
    "learned mask": lambda module, layers="*": masked(module, 0.75, layers, learned=True),
}
# Parameters that are generated.
SIZES = {
    ("mlp", "lora"): 2 * (4 + 6) + 2 * (6 + 2),
    ("mlp", "film"): 2 * 6 + 2 * 2,
    ("mlp", "masked"): 6 + 6 + 3 + 2,
    ("mlp", "learned mask"): 24 + 6 + 12 + 2,
    ("convolutions", "lora"): 2 * (9 + 4) + 2 * (16 + 6) + 2 * (54 + 2),
    ("convolutions", "film"): 2 * 4 + 2 * 6 + 2 * 2,
    ("convolutions", "masked"): 9 + 8 + 24 + 6 + 27 + 2,
    ("convolutions", "learned mask"): 36 + 8 + 96 + 6 + 108 + 2,
    ("transformer", "lora"): 4 * (8 + 12),
    ("transformer", "film"): 2 * 12 + 2 * 8,
    # attention 3 · 72 + 72, norms 32
    ("transformer", "masked"): 320 + 24 + 12 + 24 + 8,
    ("transformer", "learned mask"): 320 + 96 + 12 + 96 + 8,
}
CASES = [(kind, adapter) for kind in MODULES for adapter in ADAPTERS]


def adapted(kind: str, adapter: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A module, an adapted copy and an input."""
    make, shape, layers = MODULES[kind]
    module = make()
    return module, ADAPTERS[adapter](module, layers), torch.randn(shape)


def moved(module: nn.Module) -> nn.Module:
    """The same module with its trainable parameters elsewhere."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def hypernetwork(module: nn.Module, **settings) -> HyperNetwork:
    return HyperNetwork(
        module,
        Sparse(),
        TaskEmbedding(["one", "two"], 8),
        generate=lambda name, _: not name.endswith("scores"),
        **settings,
    )


def trainable(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}


def structure(module: nn.Module):
    return (
        [(name, type(part)) for name, part in module.named_modules()],
        [(name, value.shape, value.dtype) for name, value in module.state_dict().items()],
        [name for name, _ in module.named_parameters()],
    )


def snapshot(module: nn.Module):
    """Everything of a module that adapting a copy might change."""
    return (
        structure(module),
        {name: value.clone() for name, value in module.state_dict().items()},
        [(id(p), p.requires_grad) for p in module.parameters()],
        [{n for n in vars(type(part)) if not n.startswith("_")} for part in module.modules()],
    )


def assert_unchanged(module: nn.Module, before) -> None:
    now = snapshot(module)
    assert now[0] == before[0]
    assert now[2:] == before[2:]
    for name, value in now[1].items():
        assert torch.equal(value, before[1][name]), name


# --- what the adapters make -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "adapter"), CASES)
def test_the_given_module_is_never_changed(kind, adapter):
    module = MODULES[kind][0]()
    before = snapshot(module)
    x = torch.randn(MODULES[kind][1])
    copied = moved(ADAPTERS[adapter](module, MODULES[kind][2]))
    copied(x).sum().backward()
    merge(copied)
    assert_unchanged(module, before)


@pytest.mark.parametrize("first", ADAPTERS)
@pytest.mark.parametrize("second", ["lora", "film"])
def test_adapters_of_adapted_modules_leave_those_unchanged_and_merge_as_one(first, second):
    module, once, x = adapted("convolutions", first)
    moved(once).eval()
    before, out = snapshot(once), once(x)
    twice = ADAPTERS[second](once)
    torch.testing.assert_close(twice(x), out, atol=1e-6, rtol=1e-5)
    assert all(name.endswith((".A", ".B", ".gamma", ".beta")) for name in trainable(twice))
    moved(twice)
    out = twice(x)
    merge(twice)
    torch.testing.assert_close(twice(x), out, atol=1e-6, rtol=1e-5)
    assert structure(twice)[0] == structure(module)[0]
    assert_unchanged(once, before)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("adapter", ["lora", "film"])
def test_they_start_at_the_given_module(kind, adapter):
    module, copied, x = adapted(kind, adapter)
    torch.testing.assert_close(copied.eval()(x), module.eval()(x), atol=1e-6, rtol=1e-5)


def test_lora():
    module = convolutions()
    copied = lora(module, 3, ["0", "5"], alpha=6)
    assert trainable(copied) == {
        "0.parametrizations.weight.0.A": (3, 9),
        "0.parametrizations.weight.0.B": (4, 3),
        "5.parametrizations.weight.0.A": (3, 54),
        "5.parametrizations.weight.0.B": (2, 3),
    }
    for i in (0, 5):
        part = copied[i].parametrizations.weight[0]
        assert not part.B.any()
        assert part.A.abs().max() <= 1 / math.sqrt(part.A.shape[1])
        assert part.A.std().item() == pytest.approx(1 / math.sqrt(3 * part.A.shape[1]), rel=0.25)
        nn.init.normal_(part.B)
        expected = module[i].weight.flatten(1) + 2 * part.B @ part.A
        torch.testing.assert_close(copied[i].weight.flatten(1), expected)
    assert isinstance(copied[0], nn.Conv2d)
    assert copied.state_dict()["0.parametrizations.weight.original"].equal(module[0].weight)


def test_without_alpha_the_factor_is_one():
    assert lora(mlp(), 3)[0].parametrizations.weight[0].factor == 1


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("bias", [True, False])
def test_film(kind, bias):
    layer, shape = {
        "linear": (nn.Linear(4, 6, bias=bias), (5, 4)),
        "conv1d": (nn.Conv1d(4, 6, 3, bias=bias), (5, 4, 7)),
        "conv2d": (nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=bias), (5, 4, 7, 7)),
        "conv3d": (nn.Conv3d(4, 6, (1, 2, 3), bias=bias), (5, 4, 3, 3, 3)),
    }[kind]
    copied, x = film(layer), torch.randn(shape)
    assert trainable(copied) == {
        "parametrizations.weight.0.gamma": (6,),
        "parametrizations.bias.1.beta": (6,),
    }
    gamma, beta = copied.parametrizations.weight[0].gamma, copied.parametrizations.bias[1].beta
    assert gamma.eq(1).all()
    assert not beta.any()
    moved(copied)
    by_channel = [1, -1] + [1] * (len(shape) - 2)
    expected = gamma.view(by_channel) * layer(x) + beta.view(by_channel)
    torch.testing.assert_close(copied(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sparsity", [0, 0.31, 0.5, 0.9])
def test_a_mask_leaves_exactly_so_many_zeros(sparsity, learned):
    module = convolutions()
    copied = masked(module, sparsity, ["0", "3"], learned=learned)
    for i in (0, 3):
        numel = module[i].weight.numel()
        kept = numel - round(sparsity * numel)
        assert int(copied[i].weight.count_nonzero()) == kept
        places = copied[i].weight != 0
        expected = module[i].weight[places] * math.sqrt(numel / kept)
        torch.testing.assert_close(copied[i].weight[places], expected)
        assert copied[i].parametrizations.weight.original.shape == (
            module[i].weight.shape if learned else (kept,)
        )
    assert copied[3].bias.equal(module[3].bias)
    assert copied[5].weight.equal(module[5].weight)
    assert all(p.requires_grad for p in copied.parameters())
    plain = merge(moved(copied))
    assert int(plain[3].weight.count_nonzero()) == 96 - round(sparsity * 96)
    assert int(plain[0].weight.count_nonzero()) == 36 - round(sparsity * 36)


@pytest.mark.parametrize("learned", [False, True])
def test_a_masked_layer_keeps_the_variance_of_its_output(learned):
    torch.manual_seed(0)  # the same as the mask, which must not follow the weights
    layer, x = nn.Linear(500, 500, bias=False), torch.randn(500, 500)
    ratio = masked(layer, 0.9, learned=learned, seed=0)(x).var() / layer(x).var()
    assert ratio.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("learned", [False, True])
def test_same_seed_same_mask_and_other_seed_another(learned):
    module = mlp()
    one, two, other = (masked(module, 0.5, learned=learned, seed=seed) for seed in (3, 3, 4))
    assert one[0].weight.equal(two[0].weight)
    assert not one[0].weight.equal(other[0].weight)


def test_same_seed_same_start_of_lora_and_other_seed_another():
    module = mlp()
    one, two, other = (lora(module, 2, seed=s)[0].parametrizations.weight[0].A for s in (3, 3, 4))
    assert one.equal(two)
    assert not one.equal(other)


def test_the_gradient_of_scores_goes_straight_through_the_mask():
    layer, x = nn.Linear(6, 3), torch.randn(5, 6)
    copied = masked(layer, 0.5, learned=True)
    part, original = copied.parametrizations.weight[0], copied.parametrizations.weight.original
    scores, places = part.scores, copied.weight != 0
    kept, dropped = scores.abs()[places], scores.abs()[~places]
    assert kept.min() > dropped.max()
    grad_out = torch.randn(5, 3)
    copied(x).backward(grad_out)
    grad = grad_out.T @ x
    torch.testing.assert_close(scores.grad, grad * original * scores.sign())
    torch.testing.assert_close(original.grad, grad * places)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_layers_of_several_names_tied_layers_and_the_module_itself(adapter):
    module, x = Tied(), torch.arange(7)
    copied = moved(ADAPTERS[adapter](module, ["again", "output"]))
    if adapter in ("lora", "film"):
        assert copied.embedding.weight.equal(module.embedding.weight)
    embedded, out = copied.embedding.weight.clone(), copied(x)
    merge(copied)
    assert copied.embedding.weight.equal(embedded)
    assert copied.again is copied.block
    torch.testing.assert_close(copied(x), out, atol=1e-6, rtol=1e-5)

    single = moved(ADAPTERS[adapter](nn.Linear(4, 4)))
    out = single(torch.eye(4))
    torch.testing.assert_close(merge(single)(torch.eye(4)), out, atol=1e-6, rtol=1e-5)
    assert type(single) is nn.Linear


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_dtype_stays(adapter):
    copied, x = ADAPTERS[adapter](mlp().double()), torch.randn(5, 4, dtype=torch.float64)
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert hypernetwork(copied)(x, task=0).dtype == torch.float64
    assert {p.dtype for p in merge(copied).parameters()} == {torch.float64}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_projection_of_attention(adapter):
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    copied = moved(ADAPTERS[adapter](attention))
    out = copied(x, x, x)[0]
    merge(copied)
    torch.testing.assert_close(copied(x, x, x)[0], out, atol=1e-6, rtol=1e-5)
    assert structure(copied) == structure(attention)


# --- merging --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "adapter"), CASES)
def test_a_merged_module_is_an_ordinary_one_with_the_same_outputs(kind, adapter):
    module, copied, x = adapted(kind, adapter)
    moved(copied).eval()
    kept, out = copy.deepcopy(copied), copied(x)
    plain = merge(copied)
    assert plain is copied
    torch.testing.assert_close(plain(x), out, atol=1e-6, rtol=1e-5)
    if (kind, adapter) == ("convolutions", "film"):
        assert torch.equal(plain[0].bias, kept[0].bias)  # it had none
        plain[0].bias = None
    assert structure(plain) == structure(module)
    assert all(p.is_leaf for p in plain.parameters())
    assert b"sparsehyper" not in pickle.dumps(plain)
    assert b"parametri" not in pickle.dumps(plain)
    # Copies share the class that PyTorch gave the layers.
    torch.testing.assert_close(kept(x), out)
    torch.testing.assert_close(merge(kept)(x), out, atol=1e-6, rtol=1e-5)


def test_a_layer_keeps_the_bias_of_film_only_if_it_is_needed():
    plain = merge(film(nn.Conv2d(2, 4, 3, bias=False)))
    assert plain.bias is None
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.bias)
    assert merge(film(zero)).bias is not None


def test_merged_tensors_are_trainable_and_others_stay_as_they_are():
    plain = merge(lora(convolutions(), 2, "3"))
    assert trainable(plain) == {"3.weight": (6, 4, 2, 2)}
    module = convolutions().requires_grad_(False)
    assert not trainable(merge(masked(module, 0.5)))


@pytest.mark.parametrize("kind", MODULES)
def test_merge_leaves_modules_without_adapters_alone(kind):
    module = MODULES[kind][0]()
    module.parametrizations = nn.ModuleDict({"weight": nn.Linear(2, 2)})  # in name only
    before = snapshot(module)
    assert merge(module) is module
    assert_unchanged(module, before)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_parametrizations_of_others_stay(adapter):
    module = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    copied = ADAPTERS[adapter](module, ["1", "2"])
    for layer in copied[1:]:
        if hasattr(layer, "parametrizations") and "bias" in layer.parametrizations:
            continue
        parametrize.register_parametrization(layer, "bias", Doubled())
    parametrize.register_parametrization(copied[2], "weight", Doubled())
    moved(copied)
    x = torch.randn(5, 4)
    kept, out = copy.deepcopy(copied), copied(x)
    plain = merge(copied)
    torch.testing.assert_close(plain(x), out, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kept(x), out)
    assert not any("sparsehyper" in type(part).__module__ for part in plain.modules())
    assert type(plain[0].parametrizations.weight[0]).__name__ == "_WeightNorm"
    assert isinstance(plain[2].parametrizations.weight[0], Doubled)
    assert "weight" in plain[1]._parameters
    assert parametrize.is_parametrized(plain[1], "bias") is (adapter != "film")


# --- generated ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "adapter"), CASES)
def test_a_hypernetwork_generates_what_is_trainable_and_materialises_an_ordinary_module(
    kind, adapter
):
    module, copied, x = adapted(kind, adapter)
    hnet = hypernetwork(copied)
    assert hnet.target.numel == SIZES[kind, adapter]
    kept = {name: value.clone() for name, value in hnet.target.module.state_dict().items()}
    scores = {name for name in kept if name.endswith("scores")}
    assert bool(scores) is (adapter == "learned mask")
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-2)
    losses = []
    for step in range(10):
        out = hnet(x, task=step % 2)
        loss = (out - step % 2).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-2:]) < sum(losses[:2])
    changing = scores.union(hnet.target.statistics.names)
    for name, value in hnet.target.module.state_dict().items():
        assert torch.equal(value, kept[name]) is (name not in changing), name

    hnet.eval()
    outputs = []
    for task in ("one", "two"):
        with torch.no_grad():
            outputs.append(hnet(x, task=task))
        plain = merge(hnet.materialize(task))
        torch.testing.assert_close(plain(x), outputs[-1], atol=1e-6, rtol=1e-5)
        if (kind, adapter) == ("convolutions", "film"):
            plain[0].bias = None
        assert structure(plain) == structure(module)
    assert not torch.allclose(*outputs, atol=1e-3)
    with torch.no_grad():  # materialising has not changed it
        assert torch.equal(hnet(x, task="two"), outputs[1])


@pytest.mark.parametrize(("kind", "adapter"), CASES)
def test_one_task_per_sample(kind, adapter):
    _, copied, x = adapted(kind, adapter)
    hnet = hypernetwork(copied).eval()
    for name in ("three", "four"):
        hnet.add_task(name, torch.randn(8))
    ids = torch.tensor([0, 1, 2, 3])
    expected = torch.cat([hnet(x[i : i + 1], task=i) for i in range(4)])
    torch.testing.assert_close(hnet(x[:4], task=ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_saved_and_loaded(adapter, tmp_path):
    _, copied, x = adapted("convolutions", adapter)
    hnet = hypernetwork(copied).eval()
    hnet.save(tmp_path / "saved", frozen="store")
    other = ADAPTERS[adapter](convolutions())
    loaded = HyperNetwork.load(tmp_path / "saved", other).eval()
    torch.testing.assert_close(loaded(x, task="two"), hnet(x, task="two"))


def change(module: nn.Module, hnet: HyperNetwork, x: torch.Tensor) -> float:
    """Relative distance between the outputs of generated modules and of the given one."""
    with torch.no_grad():
        given = module(x)
        outputs = torch.stack([hnet(x, task=task) for task in range(len(hnet.task_names))])
        return float((outputs - given).norm() / given.expand_as(outputs).norm())


@pytest.mark.parametrize("base", ["zeros", "pretrained"])
@pytest.mark.parametrize("adapter", ["lora", "film"])
def test_generated_modules_start_close_to_the_given_one(adapter, base):
    module = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    hnet = hypernetwork(ADAPTERS[adapter](module), base=base)
    assert 0 < change(module, hnet, torch.randn(100, 20)) < 0.3


def test_moments_of_what_is_generated():
    def moments(module: nn.Module) -> dict[str, tuple[float, float]]:
        return {
            name.rpartition(".")[2]: initial_moments(*owner_of(module, name), p)
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    layer = nn.Linear(300, 100)
    found = moments(lora(layer, 8))
    assert found["A"] == pytest.approx((0, 1 / 30), abs=1e-3)
    assert found["B"] == (0, 0.02)
    assert moments(film(layer)) == {"gamma": (1, 0.1), "beta": (0, 0.02)}
    for learned in (False, True):
        found = moments(masked(layer, 0.75, learned=learned))
        assert found["original"] == pytest.approx((0, 2 / 30), abs=2e-3)
        assert found["bias"] == pytest.approx((0, 1 / 30))


# --- another library's LoRA -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_of_peft_is_a_target_too():
    module = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    config = peft.LoraConfig(r=4, target_modules=["0", "2"])
    wrapped = peft.get_peft_model(copy.deepcopy(module), config)
    hnet = hypernetwork(wrapped, base="pretrained")
    assert hnet.target.numel == 4 * (20 + 64) + 4 * (64 + 10)
    x = torch.randn(50, 20)
    assert change(module, hnet, x) < 0.3
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-2)
    for step in range(4):
        optimizer.zero_grad()
        (hnet(x, task=step % 2) - step % 2).square().mean().backward()
        optimizer.step()
    hnet.eval()
    for task in ("one", "two"):
        model = hnet.materialize(task)
        assert isinstance(model, peft.PeftModel)
        plain = model.merge_and_unload()
        with torch.no_grad():
            torch.testing.assert_close(plain(x), hnet(x, task=task), atol=1e-6, rtol=1e-5)
        assert structure(plain) == structure(module)
        assert plain[0].bias.equal(module[0].bias)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lora(mlp(), 0), ValueError, "`rank` must be at least 1, got 0"),
        (lambda: lora(mlp(), 1.5), TypeError, "`rank` must be an integer, got 1.5"),
        (lambda: lora(mlp(), 1, alpha=0), ValueError, "`alpha` must be greater than 0, got 0"),
        (lambda: lora(mlp(), 1, alpha="x"), TypeError, "`alpha` must be a number, got 'x'"),
        (lambda: lora(mlp(), 1, seed=-1), ValueError, "`seed` must be at least 0, got -1"),
        (lambda: masked(mlp(), 1), ValueError, "`sparsity` must be .* below 1, got 1"),
        (lambda: masked(mlp(), -0.1), ValueError, "`sparsity` must be at least 0 .*, got -0.1"),
        (lambda: masked(mlp(), math.nan), ValueError, "`sparsity` must be finite, got nan"),
        (lambda: masked(mlp(), "x"), TypeError, "`sparsity` must be a number, got 'x'"),
        (lambda: masked(mlp(), 0.5, seed=-1), ValueError, "`seed` must be at least 0, got -1"),
        (
            lambda: masked(mlp(), 0.97),
            ValueError,
            "`sparsity` 0.97 leaves none of the 12 weights of layer '2'; choose",
        ),
        (
            lambda: masked(lora(mlp(), 1), 0.5, "2"),
            ValueError,
            "layer '2' of `module` has an adapted weight, .* call `masked` first",
        ),
        (lambda: merge(3), TypeError, "`module` must be a Module, got 3"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("make", "layers", "error", "message"),
    [
        (lambda: "mlp", "*", TypeError, "`module` must be a Module, got 'mlp'"),
        (nn.ReLU, "*", ValueError, r"`module` must have a Linear or Conv layer, got ReLU\(\)"),
        (mlp, "head", ValueError, "pattern 'head' matches no .* `module`; it has: '0', '2'"),
        (mlp, ["0", "1"], ValueError, "pattern '1' matches no Linear or Conv .* '0', '2'"),
        (mlp, [], ValueError, r"`layers` must name at least one layer, got \[\]"),
        (mlp, 3, TypeError, "`layers` must be a glob or several, got 3"),
        (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))),
            "*",
            ValueError,
            "the weight of layer '0' .* is not an ordinary parameter, .* leave it out",
        ),
        (
            lambda: nn.Sequential(
                parametrize.register_parametrization(nn.Linear(2, 2), "bias", Doubled())
            ),
            "*",
            ValueError,
            "the bias of layer '0' of `module` is not an ordinary parameter",
        ),
        (
            lambda: nn.Sequential(prune.identity(nn.Linear(2, 2), "weight")),
            "0",
            ValueError,
            "the weight of layer '0' of `module` is not an ordinary parameter",
        ),
        (lambda: nn.LazyLinear(2), "*", ValueError, "weight of layer '' .* no shape yet; run"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_refuses_what_it_cannot_adapt(adapter, make, layers, error, message):
    with pytest.raises(error, match=message):
        ADAPTERS[adapter](make(), layers)
