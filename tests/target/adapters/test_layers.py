"""Which layers are meant: globs, ends of names, "all-linear", settings of peft."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import torch
import transformers
from torch import nn

from sparsehyper.adapters import film, lora
from sparsehyper.target.adapters.low_rank import changes

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 11}
LINEAR = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
IN_LAYERS = {f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in LINEAR}


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    config = transformers.BertConfig(num_hidden_layers=2, max_position_embeddings=16, **SIZES)
    return transformers.BertForSequenceClassification(config)


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


class Mine(nn.Module):
    """A layer of a kind that nothing is known of."""

    def __init__(self, size: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(size, size))


class Blocks(nn.Module):
    def __init__(self, head: bool):
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12) for _ in range(2))
        if head:
            self.out = nn.Linear(8, 3)


def adapted(module: nn.Module, layers, rank=2) -> set[str]:
    return {change.name for change in changes(lora(module, rank, layers))}


def by_peft(module: nn.Module, **settings) -> set[str]:
    return set(peft.LoraModel(module, peft.LoraConfig(**settings), "default").targeted_module_names)


def test_the_usual_layers_of_a_gpt2_are_not_its_head(gpt2):
    inside = {
        f"transformer.h.{i}.{name}"
        for i in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert adapted(gpt2, "*") == adapted(gpt2, "all-linear") == inside
    assert adapted(gpt2, "*.c_attn") == {name for name in inside if name.endswith("c_attn")}
    assert adapted(gpt2, ["lm_head", "wte"]) == {"lm_head", "transformer.wte"}
    with pytest.raises(
        ValueError, match=r"'\*' would stand for no layer, .* has: 'lm_head'; .*Conv1D"
    ):
        film(gpt2)


def test_the_usual_layers_of_a_bert(bert):
    assert adapted(bert, "all-linear") == IN_LAYERS | {"bert.pooler.dense"}
    assert adapted(bert, "*") == IN_LAYERS | {"bert.pooler.dense"}


def test_ends_of_names_and_globs(bert):
    queries = {f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)}
    assert (
        adapted(bert, "query") == adapted(bert, "self.query") == adapted(bert, "*qu*y") == queries
    )
    assert adapted(bert, ["query", "classifier"]) == {*queries, "classifier"}
    assert adapted(bert, re.compile(r".*\.query")) == queries
    assert adapted(bert, "word_*") == {"bert.embeddings.word_embeddings"}
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert adapted(nested, "1") == {"1"}
    assert adapted(nested, "0") == {"0.0"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)), {"0"}),
        (
            lambda: Blocks(head=True),
            {f"blocks.{i}.{n}" for i in range(2) for n in ("linear1", "linear2")},
        ),
        (
            lambda: Blocks(head=False),
            {f"blocks.{i}.{n}" for i in range(2) for n in ("linear1", "linear2")},
        ),
    ],
)
def test_all_linear_of_a_bare_module_leaves_out_its_last_layer(make, expected):
    found = adapted(make(), "all-linear")
    assert {name for name in found if "self_attn" not in name} == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": r".*layer\.1.*\.(key|dense)"},
        {"target_modules": ["dense"], "exclude_modules": ["pooler.dense"]},
        {"target_modules": ["word_embeddings", "classifier"]},
        {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    ],
)
def test_a_config_of_peft_means_what_peft_means(bert, settings):
    expected = by_peft(copy.deepcopy(bert), r=3, **settings)
    copied = lora(bert, peft.LoraConfig(r=3, lora_alpha=6, use_rslora=True, **settings))
    assert {change.name for change in changes(copied)} == expected
    for change in changes(copied):
        assert len(change.part.A) == 3
        assert change.part.factor == pytest.approx(6 / 3**0.5)


def test_a_config_of_peft_with_attention_and_dora():
    config = peft.LoraConfig(r=2, target_modules=["self_attn"])
    found = {change.name for change in changes(lora(Blocks(head=True), config))}
    assert found == {f"blocks.{i}.self_attn{n}" for i in range(2) for n in ("", ".out_proj")}
    config = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    (change,) = changes(lora(nn.Sequential(nn.Linear(3, 2)), config))
    assert change.part.magnitude.shape == (2,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lora(nn.Sequential(Mine(20), Mine(20), nn.Linear(2, 2)), 2),
            ValueError,
            r"`layers` '\*' would stand only for '2'; .* cannot be changed \(Mine\): '0', '1'",
        ),
        (
            lambda: lora(nn.Sequential(nn.GRU(20, 20), nn.Linear(20, 2)), 2),
            ValueError,
            r"`layers` '\*' would stand only for '1'; .* cannot be changed \(GRU\): '0'",
        ),
        (
            lambda: lora(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), 2, "all-linear"),
            ValueError,
            "'all-linear' would stand for no layer, the output's left out; name the .* has: '1'",
        ),
        (lambda: lora(Mine(3), 2), ValueError, r"must have a Linear or Conv .*\(Mine\): ''"),
        (
            lambda: lora(nn.Sequential(nn.Linear(2, 2)), 2, re.compile("x+")),
            ValueError,
            "`layers` pattern 'x\\+' matches no Linear or Conv layer of `module`; it has: '0'",
        ),
        (
            lambda: lora(nn.Sequential(*[nn.Linear(2, 2) for _ in range(30)], Mine(2)), 2, "x"),
            ValueError,
            r"it has: '\*'$",
        ),
        (
            lambda: lora(nn.Linear(2, 2), 2, [3]),
            TypeError,
            "`layers` must be a glob or several, got 3",
        ),
        (
            lambda: lora(nn.Linear(2, 2), "x"),
            TypeError,
            "`rank` must be an integer or a peft.LoraConfig, got 'x'",
        ),
        (
            lambda: lora(nn.Linear(2, 2), peft.IA3Config(target_modules=["0"])),
            ValueError,
            "must be a LoraConfig, got one of 'IA3'",
        ),
        (
            lambda: lora(nn.Linear(2, 2), peft.LoraConfig()),
            ValueError,
            "`target_modules` of the LoraConfig is not set",
        ),
        *(
            (
                lambda settings=settings: lora(
                    nn.Linear(2, 2), peft.LoraConfig(target_modules=["0"], **settings)
                ),
                ValueError,
                message,
            )
            for settings, message in [
                ({"modules_to_save": ["1"]}, r"`modules_to_save` \['1'\] .* `requires_grad_\(\)`"),
                ({"lora_dropout": 0.1}, "`lora_dropout` 0.1 of .* set it to 0; a HyperNetwork"),
                ({"rank_pattern": {"0": 3}}, "`rank_pattern` .* a call of `lora` of their own"),
                ({"bias": "all"}, "`bias` of the LoraConfig must be 'none', got 'all'"),
                ({"init_lora_weights": "pissa"}, "`init_lora_weights` 'pissa' .* not known here"),
                ({"layers_to_transform": [1]}, r"`layers_to_transform` \[1\] .* its default"),
            ]
        ),
        (
            lambda: lora(
                nn.Linear(2, 2), peft.LoraConfig(target_modules="all-linear", exclude_modules=["0"])
            ),
            ValueError,
            r"`exclude_modules` \{'0'\} cannot be used with 'all-linear'",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
