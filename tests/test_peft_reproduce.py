"""A hypernetwork from adapter directories that peft wrote."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsehyper import Dense, Sparse
from sparsehyper.adapters import load_peft, save_peft
from sparsehyper.peft.directories import read_peft

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 1, 0]])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.convolution(self.embedding(x).mT).relu().mT
        return self.head(self.attention(x, x, x, need_weights=False)[0])


# Settings of each task's adapter: other ranks, factors and layers.
TASKS = {
    "one": {"r": 2, "target_modules": ["embedding", "convolution", "head"]},
    "two": {"r": 3, "target_modules": ["embedding", "head"], "use_rslora": True},
    "three": {"r": 2, "target_modules": ["head"], "lora_alpha": 3},
    "four": {
        "r": 2,
        "target_modules": ["embedding", "convolution", "head"],
        "rank_pattern": {"head": 1},
        "alpha_pattern": {"^convolution": 3},
    },
}


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def given(module, tmp_path_factory) -> tuple[dict[str, Path], dict[str, torch.Tensor]]:
    """Directories that peft wrote, and the outputs of its models."""
    directories, found = {}, {}
    for task, settings in TASKS.items():
        config = peft.LoraConfig(init_lora_weights=False, **settings)
        model = peft.get_peft_model(copy.deepcopy(module), config)
        directories[task] = tmp_path_factory.mktemp("adapters") / task
        model.save_pretrained(directories[task])
        found[task] = outputs(model)
    return directories, found


def test_existing_adapters_are_reproduced_and_written_again(module, given, tmp_path):
    directories, expected = given
    hnet, errors = load_peft(module, directories, Dense(), 16, tolerance=2e-3, steps=400)
    assert hnet.task_names == tuple(TASKS)
    assert set(errors) == set(TASKS)
    assert max(errors.values()) < 2e-3
    plain = outputs(module)
    for task in TASKS:
        out = outputs(hnet.materialize(task))
        assert (out - expected[task]).norm() < 1e-2 * (plain - expected[task]).norm()
        save_peft(hnet, task, tmp_path / task)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / task)
        torch.testing.assert_close(outputs(again), out, atol=1e-5, rtol=1e-5)


def test_a_factor_for_a_whole_name_is_not_that_of_a_name_that_ends_alike(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)))
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["0", "2.0"], alpha_pattern={"^0": 2}
    )
    peft.get_peft_model(module, config).save_pretrained(tmp_path)
    layers = read_peft(tmp_path).layers
    assert {name: found.factor for name, found in layers.items()} == {"0": 1, "2.0": 4}


@pytest.mark.filterwarnings("ignore:the generated adapters differ")
def test_the_same_seed_gives_the_same(module, given):
    found = [
        load_peft(module, given[0], Dense(), 16, steps=5, seed=seed)[0].theta(
            torch.arange(16.0)[None]
        )
        for seed in (3, 3, 4)
    ]
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_whole_modules_are_generated_too(module, tmp_path):
    expected = {}
    for task in ("one", "two"):
        config = peft.LoraConfig(
            r=2, target_modules=["embedding"], modules_to_save=["head"], init_lora_weights=False
        )
        model = peft.get_peft_model(copy.deepcopy(module), config)
        for p in model.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn_like(p))
        model.save_pretrained(tmp_path / task)
        expected[task] = outputs(model)
    directories = {task: tmp_path / task for task in expected}
    hnet, errors = load_peft(module, directories, Dense(), 16, tolerance=2e-3, steps=400)
    assert max(errors.values()) < 2e-3
    for task, out in expected.items():
        assert (outputs(hnet.materialize(task)) - out).norm() < 2e-2 * out.norm()
    other = damaged(
        directories["two"], tmp_path / "other", drop="head", config={"modules_to_save": None}
    )
    with pytest.raises(
        ValueError, match=r"task 'two' must have a parameter 'head.bias' .* got none"
    ):
        load_peft(module, {**directories, "two": other}, Dense())


def test_factors_that_are_turned_mean_the_same(module, given, tmp_path):
    """The same change by other factors: one embedding suffices, and nothing is lost."""
    directories, _ = given
    task = tmp_path / "turned"
    task.mkdir()
    for file in directories["one"].iterdir():
        (task / file.name).write_bytes(file.read_bytes())
    tensors = load_file(task / "adapter_model.safetensors")
    turn = torch.tensor([[0.6, -3.0], [0.8, 4.0]])
    for name in [name for name in tensors if "_A" in name]:
        A, B = tensors[name], tensors[name.replace("_A", "_B")]
        tensors[name] = (turn.inverse() @ A.flatten(1)).view_as(A)
        tensors[name.replace("_A", "_B")] = (B.flatten(1) @ turn).view_as(B)
    save_file(tensors, task / "adapter_model.safetensors")
    both = {"one": directories["one"], "turned": task}
    _, errors = load_peft(module, both, Sparse(), 16, tolerance=0.02, steps=1)
    assert max(errors.values()) < 0.02


def test_a_generator_that_is_too_small_says_so(module, given):
    with pytest.warns(UserWarning, match="differ from the given ones by .*`tolerance` 0.001; use"):
        _, errors = load_peft(module, given[0], Sparse(), 16, tolerance=1e-3, steps=30)
    assert max(errors.values()) > 1e-3


def damaged(directory: Path, to: Path, config=None, tensors=None, drop="") -> Path:
    to.mkdir()
    settings = json.loads((directory / "adapter_config.json").read_text())
    held = load_file(directory / "adapter_model.safetensors")
    held = {name: t for name, t in held.items() if not drop or drop not in name}
    (to / "adapter_config.json").write_text(json.dumps({**settings, **(config or {})}))
    save_file({**held, **(tensors or {})}, to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {"use_dora": True}}, "adapter_config.json cannot be used: `use_dora` is not"),
        ({"config": {"peft_type": "IA3"}}, "must be a LoraConfig, got one of 'IA3'"),
        (
            {"config": {"init_lora_weights": "pissa"}},
            "`init_lora_weights` 'pissa' of the LoraConfig",
        ),
        ({"config": {"bias": "all"}}, "`bias` of the LoraConfig must be 'none', got 'all'"),
        ({"config": {"layers_to_transform": [1]}}, r"`layers_to_transform` \[1\]"),
        ({"config": {"alpha_pattern": {"(a+)+": 2}}}, r"pattern '\(a\+\)\+' is not the name"),
        ({"config": {"lora_alpha": "x"}}, "`lora_alpha` must be a number, got 'x'"),
        (
            {"tensors": {"base_model.model.head.bias": torch.ones(3)}},
            "'base_model.model.head.bias' is no factor of LoRA",
        ),
        (
            {"tensors": {"base_model.model.head.lora_A.weight": torch.full((2, 8), torch.nan)}},
            "'base_model.model.head.lora_A.weight' is no finite matrix",
        ),
        (
            {"tensors": {"base_model.model.head.lora_A.weight": torch.ones(2, 7)}},
            r"bad' does not fit: layer 'head' has 8 inputs and 3 outputs, .* \[2, 7\] and \[3, 2\]",
        ),
        (
            {"tensors": {"base_model.model.tail.lora_A.weight": torch.ones(2, 7)}},
            "have a change of 'tail', and `module` has no such layer",
        ),
        (
            {"drop": "head.lora_B"},
            r"layer 'head' needs the tensors \['lora_A.weight', 'lora_B.weight'\], .* has \['lor",
        ),
        (
            {
                "tensors": {
                    f"base_model.model.attention.{name}.weight": torch.ones(shape)
                    for name, shape in {
                        "lora_A": (2, 8),
                        "lora_B": (24, 2),
                        "base_layer.out_proj.lora_A": (2, 8),
                        "base_layer.out_proj.lora_B": (8, 2),
                    }.items()
                }
            },
            "whose change peft may add twice cannot be read: layer 'attention'",
        ),
    ],
)
def test_other_files_are_refused(module, given, changed, message, tmp_path):
    bad = damaged(given[0]["one"], tmp_path / "bad", **changed)
    with pytest.raises((ValueError, TypeError), match=message):
        load_peft(module, {"bad": bad}, Dense())


@pytest.mark.parametrize("settings", [{"target_modules": ["first"]}, {"modules_to_save": ["last"]}])
def test_what_a_model_has_in_several_places_is_refused(settings, tmp_path):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(4, 4)
            self.last, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied.weight = self.last.weight
            self.alone = nn.Linear(4, 4)

        def forward(self, x):
            return self.alone(self.tied(self.last(self.second(self.first(x)))))

    module = Several()
    config = peft.LoraConfig(r=2, **{"target_modules": ["alone"], **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(copy.deepcopy(module), config).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"`module` has '(first|last\.weight)' in several places"):
        load_peft(module, {"a": tmp_path / "a"}, Dense())


def test_nothing_to_read(module, given, tmp_path):
    with pytest.raises(ValueError, match="`directories` must name at least one adapter, got none"):
        load_peft(module, {}, Dense())
    with pytest.raises(FileNotFoundError, match="is no adapter of peft: it has no adapter_config"):
        load_peft(module, {"one": tmp_path}, Dense())
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        load_peft(module, given[0], Dense(), steps=0)
