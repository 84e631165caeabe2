"""Adapter directories of peft, written by this library and loaded by peft."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from sparsehyper import HyperNetwork, Ridge, Sparse, SupportSet, TaskEmbedding, TaskExamples
from sparsehyper.adapters import film, lora, save_peft

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups"),
]


class Mixed(nn.Module):
    """Layers of all kinds that peft can change."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8, padding_idx=0)
        self.wide = nn.Conv1d(8, 8, 3, padding=1)
        self.grouped = nn.Conv1d(8, 8, 3, padding="same", groups=2)
        self.deep = nn.Conv2d(2, 4, 3, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embedding(x)
        x = self.grouped(self.wide(x.mT).relu()).mT
        x = x + self.deep(x.view(len(x), 2, -1, 8)).mean((1, 2, 3))[:, None, None]
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def bert() -> nn.Module:
    config = transformers.BertConfig(
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=12,
        vocab_size=11,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.5,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def classifier_too(module: nn.Module) -> nn.Module:
    module.classifier.requires_grad_()
    return module


def embeddings_too(module: nn.Module) -> nn.Module:
    module.transformer.wte.requires_grad_()
    return module


class Standardised(nn.Conv2d):
    """A convolution by its weight, standardised."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Twice(nn.Module):
    """A layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())


class NormedTwice(nn.Module):
    """A batch norm under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = self.other = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.last(self.other(self.norm(self.first(x)).relu()))


def used(hnet: HyperNetwork) -> HyperNetwork:
    hnet.train()(torch.randn(8, 6), task="one")
    return hnet


TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 1, 0]])
# A module and how it is adapted.
CASES = {
    "bert": (bert, lambda m: lora(m, 3, ["query", "value"], alpha=5)),
    "bert with embeddings and a head": (
        bert,
        lambda m: classifier_too(lora(m, 3, ["word_embeddings", "key"], alpha=5)),
    ),
    "rsLoRA": (bert, lambda m: lora(m, 4, "all-linear", alpha=5, rslora=True)),
    "DoRA": (bert, lambda m: lora(m, 3, ["query", "word_embeddings"], alpha=5, dora=True)),
    "gpt2": (gpt2, lambda m: lora(m, 3, alpha=5)),
    "mixed": (
        Mixed,
        lambda m: lora(m, 4, ["wide", "grouped", "deep", "attention", "head"], alpha=6),
    ),
    "mixed with embeddings": (Mixed, lambda m: lora(m, 4, ["embedding", "wide"], alpha=6)),
    "DoRA of convolutions": (Mixed, lambda m: lora(m, 4, ["wide", "deep"], dora=True)),
    "in-projection": (Mixed, lambda m: lora(m, 4, ["attention"])),
    "two ranks": (bert, lambda m: lora(lora(m, 3, "query", alpha=2), 2, "value")),
    "names that end alike": (
        lambda: nn.Sequential(nn.Embedding(9, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
        lambda m: lora(m, 2, ["1.0"]),
    ),
}


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(TOKENS)
    return getattr(out, "logits", out)


def hypernetwork(target: nn.Module, **settings) -> HyperNetwork:
    return HyperNetwork(target, Sparse(), TaskEmbedding(["one", "two"], 8), scale=2.0, **settings)


@pytest.mark.parametrize("kind", CASES)
def test_peft_loads_what_is_written_to_the_same_outputs(kind, tmp_path):
    make, adapt = CASES[kind]
    torch.manual_seed(0)
    module = make().eval()
    hnet = hypernetwork(adapt(module))
    with torch.no_grad():  # what all tasks share has been trained
        for p in hnet.target.module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    given = outputs(module)
    for task in ("one", "two"):
        save_peft(hnet, task, tmp_path / task)
        expected = outputs(hnet.materialize(task))
        assert not torch.allclose(expected, given, atol=1e-3)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / task)
        torch.testing.assert_close(outputs(loaded), expected, atol=1e-5, rtol=1e-5)


def written(hnet: HyperNetwork, module: nn.Module, folder: Path) -> nn.Module:
    save_peft(hnet, "one", folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(module), folder).eval()


def test_what_was_trained_and_then_frozen_is_written(tmp_path):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    adapted = lora(module, 2, "0")
    adapted[2].requires_grad_()
    hnet = hypernetwork(adapted, generate="0.*")
    with torch.no_grad():
        hnet.target.module[2].weight.add_(1)
    hnet.requires_grad_(False)
    x = torch.randn(5, 6)
    expected = hnet.materialize("one").eval()(x)
    torch.testing.assert_close(written(hnet, module, tmp_path / "one")(x), expected)


def test_batch_norm_statistics_of_all_tasks_are_written(tmp_path):
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    hnet = hypernetwork(lora(module, 2, ["0", "3"]), norm_stats="shared").train()
    for _ in range(20):
        hnet(3 + 2 * torch.randn(32, 6), task="one")
    hnet.eval()
    x = 3 + 2 * torch.randn(5, 6)
    expected = hnet.materialize("one").eval()(x)
    torch.testing.assert_close(written(hnet, module, tmp_path / "one")(x), expected)


def test_statistics_that_did_not_change_are_not_written(tmp_path):
    """Nor are other layers then taken for their norm, such as 11 for 1."""
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), *(nn.Tanh() for _ in range(9)), nn.Linear(8, 3)]
    module = nn.Sequential(*layers).eval()
    hnet = hypernetwork(lora(module, 2, ["0", "11"]), norm_stats="shared").eval()
    x = torch.randn(5, 6)
    expected = hnet.materialize("one").eval()(x)
    torch.testing.assert_close(written(hnet, module, tmp_path / "one")(x), expected)
    hnet.train()(x, task="one")
    with pytest.raises(ValueError, match="peft would take '11' for '1', which is generated or tr"):
        save_peft(hnet, "one", tmp_path / "two")


def test_the_kept_embedding_is_written_in_training_too(tmp_path):
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    support = SupportSet(nn.Linear(5, 16), features=16, n_classes=2, dim=8)
    tasks = TaskExamples(
        support, ["one", "two"], lambda _: (torch.randn(6, 5), torch.arange(6) % 2)
    )
    hnet = HyperNetwork(lora(module, 2), Sparse(), tasks, base="residual", scale=1.0)
    tasks.renew()
    hnet.train()
    x = torch.randn(5, 5)
    expected = hnet.materialize("one").eval()(x)
    torch.testing.assert_close(written(hnet, module, tmp_path / "one")(x), expected)
    assert hnet.training


def test_the_files(tmp_path):
    hnet = hypernetwork(lora(gpt2(), 3, ["c_attn"], alpha=5))
    save_peft(hnet, "two", tmp_path / "two", base="openai/gpt2")
    config = json.loads(Path(tmp_path, "two", "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    assert config["target_modules"] == ["c_attn"]
    assert config["base_model_name_or_path"] == "openai/gpt2"
    assert config["fan_in_fan_out"]
    tensors = load_file(tmp_path / "two" / "adapter_model.safetensors")
    A = hnet.generate("two")["transformer.h.1.attn.c_attn.parametrizations.weight.0.A"]
    assert tensors["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"].equal(A)
    assert len(tensors) == 4
    with pytest.raises(FileExistsError, match="two' exists"):
        save_peft(hnet, "two", tmp_path / "two")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.ConvTranspose1d(2, 2, 3)), 2)),
            "peft has nothing for a ConvTranspose1d: layer '0'; use `materialize`",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.Conv1d(2, 2, 3, dilation=2)), 2)),
            "a convolution with dilation or another padding than zeros: layer '0'",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.MultiheadAttention(4, 2, kdim=3)), 2)),
            "projections with weights of their own: layer '0'",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.MultiheadAttention(4, 2)), 2, dora=True)),
            "DoRA of an attention: layer '0'",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), 2, dora=True)),
            "DoRA of a convolution with groups: layer '0'",
        ),
        (lambda: hypernetwork(lora(nn.Linear(2, 2), 2)), "a model that is one layer itself"),
        (lambda: hypernetwork(nn.Linear(2, 2)), "must have a target that `lora` returned, got"),
        (
            lambda: hypernetwork(film(lora(nn.Sequential(nn.Linear(2, 2)), 2))),
            "for the adapter '0.parametrizations.weight.1'",
        ),
        (
            lambda: hypernetwork(lora(lora(nn.Sequential(nn.Linear(2, 2)), 2), 2)),
            "for several changes, or of several kinds: layer '0'",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.MultiheadAttention(4, 2)), 2)),
            "an attention, whose change peft may add twice: layer '0.out_proj'; use `mat",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 2)),
            "keeps '1.running_mean' for each task",
        ),
        (
            lambda: hypernetwork(
                lora(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 2, "0"), head=Ridge()
            ),
            "has a `head` in closed form",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(nn.Linear(2, 2)), 2).requires_grad_()),
            "cannot write what else of '0.*' is generated or trained",
        ),
        (
            lambda: hypernetwork(lora(nn.Sequential(Standardised(3, 8, 3)), 2)),
            "a Standardised, which has a forward pass of its own: layer '0'",
        ),
        (
            lambda: hypernetwork(lora(Twice(), 2, "first")),
            "one place of a layer that a model has in several: layer 'first'",
        ),
        (
            lambda: hypernetwork(embeddings_too(lora(gpt2(), 2, "c_attn"))),
            "cannot write the tied parameter 'transformer.wte.weight' for all",
        ),
        (
            lambda: hypernetwork(
                lora(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 2), norm_stats="batch"
            ),
            "batch norms of `hnet` use the batch",
        ),
        (
            lambda: used(hypernetwork(lora(NormedTwice(), 2, "first"), norm_stats="shared")),
            "one place of a module that a model has in several: 'norm'",
        ),
    ],
)
def test_an_error_names_what_peft_has_nothing_for(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_peft(make(), "one", tmp_path / "one")
    assert not list(tmp_path.iterdir())
