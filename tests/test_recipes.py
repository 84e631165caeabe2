from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsehyper import Dense, HyperNetwork, Sparse, TaskEmbedding
from sparsehyper._util.files import CheckpointError, read_sealed, sealed
from sparsehyper.adapters import lora
from sparsehyper.lab.runs import build_target
from sparsehyper.recipes import _harmless, build, describe

FLOAT = {"dtype": "torch.float32"}
LINEAR = {"class": "Linear", "in_features": 2, "out_features": 2, **FLOAT}
TARGET = nn.Sequential(
    nn.Conv2d(1, 4, (3, 5), padding="same", padding_mode="circular", bias=False),
    nn.BatchNorm2d(4, affine=False),
    nn.LeakyReLU(0.2),
    nn.MaxPool2d(2),
    nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten()),
    nn.LayerNorm((4, 3), eps=0.1),
    nn.Embedding(5, 3, padding_idx=1),
)


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda *_: None)
    return module


def twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].weight = module[1].weight
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_is_built_from_its_recipe(dtype):
    recipe = json.loads(json.dumps(describe(TARGET.to(dtype))))
    state = torch.random.get_rng_state()
    again = build(recipe)
    assert torch.equal(state, torch.random.get_rng_state())
    assert repr(again) == repr(TARGET)
    assert {t.dtype for t in again.parameters()} == {dtype}


LAYERS = [
    *(nn.Hardtanh(-2, 0.5), nn.Threshold(0.1, 20), nn.RReLU(0.1, 0.2), nn.GLU(1), nn.GLU(-1)),
    *(nn.Hardshrink(0.3), nn.Softshrink(0.3), nn.Tanhshrink(), nn.Softmin(1), nn.Softmax2d()),
    *(nn.Unflatten(1, (2, 2)), nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 6, 6)))),
    *(nn.ZeroPad2d((1, 2, 3, 0)), nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(2)),
    *(nn.ReplicationPad2d((1, 0, 0, 1)), nn.CircularPad2d(1), nn.ChannelShuffle(2)),
    *(nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.FeatureAlphaDropout(0.3)),
    *(nn.AvgPool2d(2, count_include_pad=False), nn.RMSNorm(6), nn.LocalResponseNorm(2)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_layer_is_built_from_its_recipe(layer):
    module = nn.Sequential(nn.Conv2d(1, 4, 1), layer).eval()
    again = build(json.loads(json.dumps(describe(module)))).eval()
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize(
    "module",
    [
        hooked(),
        twice(),
        tied(),
        lora(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), rank=2),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
        nn.LSTM(2, 2),
    ],
    ids=["hook", "layer twice", "tied", "adapters", "two types", "no such layer"],
)
def test_a_module_that_a_recipe_could_not_give_back_has_none(module):
    assert describe(module) is None


@pytest.mark.parametrize(
    "text",
    [
        *("resnet:depth=8,width=4", "resnet:depth=10,width=4,stages=4,norm=none"),
        *("resnet9:width=4", "thesis_resnet:blocks=2,width=4"),
        *("mlp:16/masked:0.9", "resnet:depth=8,width=4/masked:0.9", "resnet9:width=4/masked:0.5"),
    ],
)
def test_the_targets_of_the_command_line_are_built_from_the_file(tmp_path, text):
    target = build_target(text, (3, 8, 8), n_classes=3)
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(2, 8), base="residual").eval()
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model").eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x, task=1), hnet(x, task=1))
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in hnet.named_parameters()]


def test_a_residual_network_that_was_changed_has_no_recipe():
    target = build_target("resnet:depth=8,width=4", (3, 8, 8), n_classes=3)
    assert describe(target)["class"] == "ResNet"
    target.head = nn.Linear(16, 5)
    assert describe(target) is None


def test_a_file_without_a_recipe_asks_for_the_target(tmp_path):
    HyperNetwork(nn.LSTM(2, 2), Sparse(), TaskEmbedding(2, 8)).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"`target` is needed .* do not say how to build"):
        HyperNetwork.load(tmp_path / "model")


def test_a_file_that_does_not_hold_all_values_asks_for_the_target(tmp_path):
    target = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
    hnet = HyperNetwork(target, Dense(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "small")
    with pytest.raises(
        ValueError, match=r"2 of its tensors, .*'target\.module\.0\.weight', .*stor"
    ):
        HyperNetwork.load(tmp_path / "small")
    hnet.save(tmp_path / "whole", frozen="store")
    again = HyperNetwork.load(tmp_path / "whole")
    assert torch.equal(again(torch.ones(1, 4), task=1), hnet(torch.ones(1, 4), task=1))
    flags = [{n: p.requires_grad for n, p in h.named_parameters()} for h in (hnet, again)]
    assert flags[0] == flags[1]


def test_a_model_of_transformers_is_built_by_its_configuration(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16, vocab_size=30, num_labels=5)
    target = transformers.BertForSequenceClassification(config).eval()
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(2, 8), base="residual")
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model").eval()
    words = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(words, task=1).logits, hnet(words, task=1).logits)


@pytest.mark.parametrize(
    "recipe",
    [
        3,
        {"class": "Module", **FLOAT},
        {"class": "Linear", "in_features": 2, "out_features": 2, "device": "cuda", **FLOAT},
        {"class": "Linear", "in_features": 2, "out_features": 2, "dtype": "os.system"},
        {"class": "Linear", "in_features": 10**7, "out_features": 10**7, **FLOAT},
        {"class": "BatchNorm1d", "num_features": 10**13, "affine": False, **FLOAT},
        {"class": "Sequential", "layers": [1], **FLOAT},
        {"class": "ResNet", "image_shape": [3, 8, 8], "n_classes": 2, "depth": 7, **FLOAT},
        {"class": "ResNet", "image_shape": [3, 8, 8], "n_classes": 2, "width": 10**6, **FLOAT},
        {"class": "Shortcut", "inner": {"class": "Linear"}, "projection": 3, **FLOAT},
        {**LINEAR, "masked": {"": 5}},
        {**LINEAR, "masked": {"0": 1}},
        {**LINEAR, "masked": {"": "all"}},
        {"transformers": "pipeline", "config": {}, **FLOAT},
        {"transformers": "AutoModel", "config": {"auto_map": {"AutoModel": "x--y.Z"}}, **FLOAT},
    ],
)
def test_a_strange_recipe_builds_nothing(tmp_path, recipe):
    hnet = HyperNetwork(nn.Sequential(nn.Linear(2, 2)), Sparse(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(sealed({**read_sealed(file), "target": recipe}))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        HyperNetwork.load(tmp_path / "model")


def test_settings_that_name_code_are_left_out():
    settings = {"auto_map": 1, "width": 2, "parts": [{"_attn_implementation": "a/b", "depth": 3}]}
    assert _harmless(settings) == {"width": 2, "parts": [{"depth": 3}]}
