from __future__ import annotations

import json
import os
from collections import OrderedDict

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsehyper import (
    Chunked,
    Composed,
    Dense,
    HyperNetwork,
    LowRank,
    Ridge,
    Sparse,
    TaskEmbedding,
    saving,
)
from sparsehyper._util.files import CheckpointError, digest, read_sealed, sealed

GENERATORS = [
    *(Sparse(topology=t) for t in ("circulant", "uniform", "regular", "local", "mixed")),
    Sparse("geometric", 8.0, "local", 2.0, "prelu", True),
    Chunked(7, hidden=5),
    Dense(),
]


EMBEDDING = "target.module.0.weight"


def make_target(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def make(generator=None, **settings) -> HyperNetwork:
    """A hypernetwork that has seen data, is trained a little and has a task added."""
    embedding = TaskEmbedding(["shoes", "büge"], dim=8)
    hnet = HyperNetwork(make_target(), generator or Sparse(), embedding, **settings)
    hnet(torch.randn(20, 4), task=torch.arange(20) % 2)
    with torch.no_grad():
        for parameter in hnet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    hnet.add_task("coats")
    return hnet


def assert_equal(one: HyperNetwork, two: HyperNetwork) -> None:
    x = torch.randn(5, 4)
    one.eval(), two.eval()
    assert one.task_names == two.task_names
    for task in one.task_names:
        assert torch.equal(one(x, task=task), two(x, task=task))
    assert one.state_dict().keys() == two.state_dict().keys()


@pytest.mark.parametrize("base", ["zeros", "learned", "pretrained"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_what_is_saved_comes_back(tmp_path, generator, base):
    hnet = make(generator, base=base, scale=0.7, seed=5)
    hnet.save(tmp_path / "new" / "model", frozen="store")
    again = HyperNetwork.load(tmp_path / "new" / "model", make_target())
    assert_equal(hnet, again)
    again.save(tmp_path / "again", frozen="store")
    files = [(tmp_path / d / "config.json").read_text() for d in ("new/model", "again")]
    assert files[0] == files[1]


def test_it_is_loaded_to_a_device(tmp_path, monkeypatch):
    hnet, moved = make(), []
    hnet.save(tmp_path / "model")
    monkeypatch.setattr(HyperNetwork, "to", lambda self, device: moved.append(device) or self)
    assert_equal(hnet, HyperNetwork.load(tmp_path / "model", make_target(), device="cuda:1"))
    HyperNetwork.load(tmp_path / "model", make_target())
    assert moved == ["cuda:1"]


@pytest.mark.gpu
def test_what_is_loaded_to_a_gpu_is_what_was_saved(tmp_path):
    hnet = make()
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", make_target(), device="cuda")
    assert {t.device.type for t in (*again.parameters(), *again.buffers())} == {"cuda"}
    assert_equal(hnet, again.cpu())


@pytest.mark.parametrize("norm_stats", ["per_task", "shared", "batch"])
@pytest.mark.parametrize("others", ["shared", "frozen"])
def test_what_is_not_generated_comes_back_too(tmp_path, others, norm_stats):
    hnet = make(generate=["0.*", "1.weight"], others=others, norm_stats=norm_stats)
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", make_target())
    assert_equal(hnet, again)
    flags = [{n: p.requires_grad for n, p in h.named_parameters()} for h in (hnet, again)]
    assert flags[0] == flags[1]


def test_tied_parameters_that_are_shared_come_back(tmp_path):
    def make_tied() -> nn.Module:
        first = nn.Linear(4, 4)
        target = nn.Sequential(first, nn.ReLU(), first, nn.Linear(4, 4))
        target[3].weight = first.weight
        return target.append(nn.Linear(4, 2))

    hnet = HyperNetwork(make_tied(), Sparse(), TaskEmbedding(2, 8), generate="4.*")
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", make_tied())
    assert_equal(hnet, again)
    assert again.target.module[3].weight is again.target.module[0].weight


def test_tied_parameters_are_written_once_and_older_files_have_them_twice(tmp_path):
    def make_tied() -> nn.Module:
        target = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 4), nn.Linear(4, 50, bias=False))
        target[2].weight = target[0].weight
        return target

    hnet = HyperNetwork(make_tied(), Sparse(), TaskEmbedding(2, 8), generate="1.*")
    hnet.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    assert [name for name in tensors if name.startswith("target.module")] == [EMBEDDING]
    x = torch.tensor([1, 2])
    again = HyperNetwork.load(tmp_path / "model", make_tied())
    assert torch.equal(again(x, task=1), hnet(x, task=1))
    save_file({**tensors, "target.module.2.weight": tensors[EMBEDDING].clone()}, file)
    older = edited(lambda c: (c.pop("given"), c.update(weights=digest(file))))
    older(tmp_path / "model" / "config.json")
    again = HyperNetwork.load(tmp_path / "model", make_tied())
    assert torch.equal(again(x, task=1), hnet(x, task=1))


def adapted(seed: int = 0) -> nn.Module:
    """A frozen trunk of 8,320 numbers with a last layer to generate."""
    torch.manual_seed(seed)
    target = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    target[:3].requires_grad_(False)
    return target


def test_a_file_holds_what_is_trained_and_fingerprints_of_the_rest(tmp_path):
    hnet = HyperNetwork(adapted(), Dense(), TaskEmbedding(3, 8))
    hnet.save(tmp_path / "small")
    hnet.save(tmp_path / "whole", frozen="store")
    trained = 4 * sum(p.numel() for p in hnet.parameters() if p.requires_grad)
    sizes = {d: (tmp_path / d / "model.safetensors").stat().st_size for d in ("small", "whole")}
    assert trained < sizes["small"] < trained + 2_000 < trained + 4 * 8_320 < sizes["whole"]
    x = torch.randn(4, 64)
    for file, target in (("small", adapted()), ("whole", adapted()), ("whole", adapted(1))):
        again = HyperNetwork.load(tmp_path / file, target)
        assert torch.equal(again(x, task=2), hnet(x, task=2))
        assert frozen(again) == frozen(hnet)


@pytest.mark.parametrize("settings", [{}, {"others": "frozen", "generate": "3.*"}])
def test_another_frozen_part_is_refused_with_what_differs(tmp_path, settings):
    target = adapted()
    HyperNetwork(target, Dense(), TaskEmbedding(3, 8), **settings).save(tmp_path / "model")
    with torch.no_grad():
        target[2].bias[5] += 1e-3
    message = r"1 of 4 frozen tensors differ, the first is 'target\.module\.2\.bias'; give .*store"
    with pytest.raises(CheckpointError, match=message):
        HyperNetwork.load(tmp_path / "model", target)
    with pytest.raises(CheckpointError, match=r"4 of 4 frozen tensors differ"):
        HyperNetwork.load(tmp_path / "model", adapted(0).half().float())


def test_a_pretrained_base_is_given_again(tmp_path):
    hnet = HyperNetwork(make_target(), Sparse(), TaskEmbedding(2, 8), base="pretrained")
    hnet.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"1 of 1 frozen .* 'target\.base'"):
        HyperNetwork.load(tmp_path / "model", make_target())


@pytest.mark.parametrize("fused", [False, True])
def test_what_was_frozen_after_training_is_in_the_file(tmp_path, fused):
    hnet = HyperNetwork(adapted(), Dense(), TaskEmbedding(3, 8))
    hnet.target.module[0].requires_grad_()
    optimizer = torch.optim.SGD(hnet.target.module[0].parameters(), 0.1, fused=fused)
    x = torch.randn(4, 64)
    hnet(x, task=0).square().sum().backward()
    optimizer.step()
    hnet.target.module[0].requires_grad_(False)
    hnet.save(tmp_path / "model")
    assert torch.equal(HyperNetwork.load(tmp_path / "model", adapted())(x, task=2), hnet(x, task=2))


def test_it_is_frozen_by_reference_or_stored(tmp_path):
    with pytest.raises(ValueError, match=r"`frozen` must be one of 'reference', 'store'; got 'no'"):
        make().save(tmp_path / "model", frozen="no")


def test_there_are_two_files_and_no_pickle_in_them(tmp_path):
    make().save(tmp_path / "model")
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["model"]
    files = sorted((tmp_path / "model").iterdir())
    assert [f.name for f in files] == ["config.json", "model.safetensors"]
    json.loads(files[0].read_text())
    content = files[1].read_bytes()
    header = int.from_bytes(content[:8], "little")
    sizes = [entry["data_offsets"] for entry in json.loads(content[8 : 8 + header]).values()]
    assert 8 + header + max(end for _, end in sizes) == len(content)


def test_nothing_is_written_over(tmp_path):
    make().save(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"'.*model' exists; nothing is ever written over"):
        make(Dense()).save(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "failing", ["saving.write_tensors", "_util.files.json.dumps", "_util.files.os.fsync"]
)
def test_a_save_that_fails_midway_leaves_nothing(tmp_path, monkeypatch, failing):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"sparsehyper.{failing}", stop)
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", None])
def test_a_missing_file_is_named(tmp_path, missing):
    path = tmp_path / "model"
    if missing:
        make().save(path)
        (path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"model' .* no {missing or 'config.json'}"):
        HyperNetwork.load(path, make_target())


def edited(change):
    def damage(path):
        config = read_sealed(path)
        change(config)
        path.write_bytes(sealed(config).encode())

    return damage


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda p: p.write_text(""), "config.json is damaged"),
        ("config.json", lambda p: p.write_text(p.read_text()[:100]), "config.json is damaged"),
        ("config.json", lambda p: p.write_bytes(b"\xff\xfe"), "config.json is damaged"),
        ("config.json", lambda p: p.write_text("[]"), "config.json is damaged"),
        ("config.json", edited(lambda c: c.pop("format")), "config.json has format None"),
        ("config.json", edited(lambda c: c.pop("generator")), "config.json .*'generator'"),
        ("config.json", edited(lambda c: c.pop("base")), "config.json .*'base'"),
        ("config.json", edited(lambda c: c.update(layout=3)), "config.json is damaged"),
        ("config.json", edited(lambda c: c.update(layout=[])), "selects no parameter"),
        (
            "config.json",
            edited(lambda c: c["task_names"].reverse()),
            "its tasks are 'coats', 'büge', 'shoes', the model's are 'shoes', 'büge', 'coats'",
        ),
        (
            "config.json",
            edited(lambda c: c.update(task_names=3)),
            "config.json is damaged.*a list, got 3",
        ),
        (
            "config.json",
            edited(lambda c: c["generator"].update(kind="magic")),
            "config.json is damaged.*got 'magic'",
        ),
        ("config.json", edited(lambda c: c.update(format=2)), "has format 2, .* reads format 1"),
        (
            "config.json",
            edited(lambda c: c["conditioner"]["tasks"].append("more")),
            r"'conditioner.weight' has shape \[3, 8\], the model's is \[4, 8\]",
        ),
        (
            "config.json",
            edited(lambda c: c["generator"].update(bias=True)),
            "lacks the tensor 'generator.layers.0.bias'",
        ),
        (
            "config.json",
            edited(lambda c: c.update(base="zeros")),
            "unexpected tensor 'target.base'",
        ),
        ("model.safetensors", lambda p: p.write_bytes(b""), "model.safetensors is damaged"),
        (
            "model.safetensors",
            lambda p: p.write_bytes(p.read_bytes()[:-10]),
            "model.safetensors is damaged",
        ),
        (
            "model.safetensors",
            lambda p: p.write_bytes(b"garbage!" + p.read_bytes()[8:]),
            "model.safetensors is damaged",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, damage, message):
    make().save(tmp_path / "model")
    damage(tmp_path / "model" / file)
    with pytest.raises(ValueError, match=message):
        HyperNetwork.load(tmp_path / "model", make_target())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_target(7), r"generates '0.weight' of shape \[6, 4\], this .* shape \[7, 4\]"),
        (nn.Linear(4, 2), r"generates '0.weight' of shape \[6, 4\], .* has no such parameter"),
        (make_target().requires_grad_(False), "'0.weight' .* this target has no such parameter"),
        (make_target().append(nn.Linear(2, 2)), "lacks the tensor 'target.module.3.weight'"),
        (
            nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
            r"unexpected tensor 'target.module.1.(running|num)_",
        ),
    ],
)
def test_another_target_is_refused_and_the_misfit_named(tmp_path, target, message):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        HyperNetwork.load(tmp_path / "model", target)


def test_an_unexpected_tensor_is_named(tmp_path):
    make(Sparse(bias=True)).save(tmp_path / "model")
    edited(lambda c: c["generator"].update(bias=False))(tmp_path / "model" / "config.json")
    with pytest.raises(ValueError, match=r"unexpected tensor 'generator.layers.0.bias'"):
        HyperNetwork.load(tmp_path / "model", make_target())


def frozen(hnet: nn.Module) -> dict[str, bool]:
    return {name: not p.requires_grad for name, p in hnet.named_parameters()}


@pytest.mark.parametrize("part", ["target", "generator", "conditioner", "base"])
def test_what_was_frozen_when_it_was_saved_is_frozen(tmp_path, part):
    target = make_target()
    if part == "target":
        target[0].requires_grad_(False)
    hnet = HyperNetwork(target, Sparse(), TaskEmbedding(2, 8))
    if part == "base":
        hnet.target.base.requires_grad_(False)
    elif part != "target":
        getattr(hnet, part).requires_grad_(False)
    assert any(frozen(hnet).values())
    hnet.save(tmp_path / "model")
    conditioner = TaskEmbedding(2, 8).requires_grad_(False)
    for again in (
        HyperNetwork.load(tmp_path / "model", target),
        HyperNetwork.load(tmp_path / "model", target, conditioner),
    ):
        assert frozen(again) == frozen(hnet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_type_is_refused_until_the_target_has_it(tmp_path, dtype):
    hnet = HyperNetwork(make_target().to(dtype), Sparse(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"has dtype {dtype}, the model's is torch\.float32"):
        HyperNetwork.load(tmp_path / "model", make_target())
    again = HyperNetwork.load(tmp_path / "model", make_target().to(dtype))
    assert {t.dtype for t in again.parameters()} == {dtype}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path, value):
    hnet = make()
    with torch.no_grad():
        hnet.conditioner.weight[1, 2] = value
    hnet.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"'conditioner\.weight' holds NaN or infinity"):
        HyperNetwork.load(tmp_path / "model", make_target())


def test_a_mask_of_infinities_comes_back(tmp_path):
    def masked() -> nn.Module:
        target = make_target()
        target.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        return target

    hnet = HyperNetwork(masked(), Sparse(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", masked())
    assert torch.equal(again.target.module.mask, hnet.target.module.mask)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_regular_files_are_opened(tmp_path, name, kind):
    make().save(tmp_path / "model")
    file = tmp_path / "model" / name
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no pipes among its files")
    file.rename(tmp_path / name)
    {
        "link": lambda: file.symlink_to(tmp_path / name),
        "pipe": lambda: os.mkfifo(file),
        "directory": file.mkdir,
    }[kind]()
    what = "is a link" if kind == "link" else "is not a regular file"
    with pytest.raises(CheckpointError, match=rf"{name} {what}"):
        HyperNetwork.load(tmp_path / "model", make_target())


@pytest.mark.parametrize(
    ("text", "number"), [("I/O error: No space left on device (os error 28)", 28), ("odd", 5)]
)
def test_an_error_of_the_file_system_is_an_os_error(tmp_path, monkeypatch, text, number):
    def fail(*_, **__):
        raise safetensors.SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.serialize_file", fail)
    with pytest.raises(OSError, match=rf"\[Errno {number}\] .*model\.safetensors"):
        make().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# --- writing over ---------------------------------------------------------------------------


class Died(BaseException):
    pass


def written(path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_a_directory_of_one_s_own_is_written_over_when_asked_to(tmp_path):
    make().save(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("notes")
    hnet = make(Dense())
    hnet.save(tmp_path / "model", overwrite=True)
    assert_equal(hnet, HyperNetwork.load(tmp_path / "model", make_target()))
    assert written(tmp_path / "model") == {"config.json", "model.safetensors", "README.md"}
    hnet.save(tmp_path / "new", overwrite=True)
    assert_equal(hnet, HyperNetwork.load(tmp_path / "new"))


@pytest.mark.parametrize("step", ["write_tensors", "sync", "write_sealed", "_settle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_dies_while_writing_over_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, step, when
):
    old, new, last = make(), make(Dense()), make(Dense())
    old.save(tmp_path / "model")
    original, calls = getattr(saving, step), []

    def dying(*args, **kwargs):
        calls.append(step)
        if step == "_settle" and len(calls) == 1:  # before anything is written
            return original(*args, **kwargs)
        if when == "after":
            original(*args, **kwargs)
        if step != "_settle":  # a process that dies settles nothing
            monkeypatch.setattr(saving, "_settle", lambda path: None)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(saving, step, dying)
        with pytest.raises(Died):
            new.save(tmp_path / "model", overwrite=True)
    monkeypatch.undo()
    came_through = step == "_settle" or (step == "write_sealed" and when == "after")
    found = HyperNetwork.load(tmp_path / "model", make_target())
    assert_equal(new if came_through else old, found)
    last.save(tmp_path / "model", overwrite=True)
    assert_equal(last, HyperNetwork.load(tmp_path / "model", make_target()))
    assert written(tmp_path / "model") == {"config.json", "model.safetensors"}


def test_a_full_disk_leaves_the_old(tmp_path, monkeypatch):
    old = make()
    old.save(tmp_path / "model")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space"):
            make(Dense()).save(tmp_path / "model", overwrite=True)
    assert_equal(old, HyperNetwork.load(tmp_path / "model"))
    assert written(tmp_path / "model") == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("other", ["photo.jpg", "SHA256SUMS"])
def test_what_is_not_one_s_own_is_never_written_over(tmp_path, other):
    path = tmp_path / "model"
    make().save(path)
    (path / other).write_text("mine")
    before = written(path)
    with pytest.raises(FileExistsError, match=f"is not written over: .*{other}"):
        make(Dense()).save(path, overwrite=True)
    assert written(path) == before


def test_an_empty_directory_is_written_to(tmp_path):
    (tmp_path / "model").mkdir()
    hnet = make()
    hnet.save(tmp_path / "model", overwrite=True)
    assert_equal(hnet, HyperNetwork.load(tmp_path / "model", make_target()))


# --- a target that declares its parameters in another order ----------------------------------

SIZES = {"first": (4, 6), "second": (6, 6), "third": (6, 2)}


class Declared(nn.Module):
    """Three layers, declared in any order, the second with the first's bias."""

    def __init__(self, *order: str, tied: bool = True) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(*SIZES[name]))
        if tied:
            self.second.bias = self.first.bias
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.third(self.norm(self.second(self.first(x).relu()).relu()))


ORDER, OTHER = ("first", "second", "third"), ("third", "second", "first")


@pytest.mark.parametrize("base", ["learned", "residual"])
@pytest.mark.parametrize(
    "generator",
    [
        *(Sparse(), Chunked(by="filter"), LowRank(rank=1)),
        Composed({"first.bias": Dense(), "*.weight": Chunked(by="tensor"), "*": Sparse()}),
    ],
)
def test_the_order_of_the_saved_layout_counts(tmp_path, generator, base):
    embedding = TaskEmbedding(["a", "b"], dim=8)
    hnet = HyperNetwork(Declared(*ORDER), generator, embedding, base=base)
    hnet(torch.randn(20, 4), task=torch.arange(20) % 2)
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", Declared(*OTHER))
    assert_equal(hnet, again)
    x, tasks = torch.randn(6, 4), torch.arange(6) % 2
    torch.testing.assert_close(again(x, task=tasks), hnet(x, task=tasks))
    torch.testing.assert_close(again.materialize("b")(x), hnet.materialize("b")(x))
    again.save(tmp_path / "again")
    files = [(tmp_path / d / "config.json").read_text() for d in ("model", "again")]
    assert json.loads(files[0])["layout"] == json.loads(files[1])["layout"]
    hnet.load_state_dict(again.state_dict())


@pytest.mark.parametrize("generate", ["third.*", "first.*"])
def test_what_is_shared_and_tied_comes_back_in_any_order(tmp_path, generate):
    settings = {"generate": generate, "head": None if generate == "third.*" else Ridge("third")}
    hnet = HyperNetwork(Declared(*ORDER), Sparse(), TaskEmbedding(2, 8), **settings)
    hnet.save(tmp_path / "model")
    assert_equal(hnet, HyperNetwork.load(tmp_path / "model", Declared(*OTHER)))


def test_the_last_layer_that_a_head_replaced_is_the_same_in_any_order(tmp_path):
    hnet = HyperNetwork(Declared(*ORDER), Sparse(), TaskEmbedding(2, 8), head=Ridge())
    hnet.solve_head("1", (torch.randn(9, 4), torch.arange(9) % 2))
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", Declared(*OTHER))
    assert_equal(hnet, again)
    x = torch.randn(6, 4)
    assert torch.equal(again.materialize("1")(x), hnet.materialize("1")(x))


def test_a_module_that_is_used_twice_may_be_declared_by_its_other_name(tmp_path):
    def make_twice(*names: str) -> nn.Module:
        shared = nn.Linear(4, 4)
        return nn.Sequential(OrderedDict.fromkeys(names, shared))

    hnet = HyperNetwork(make_twice("a", "b"), Sparse(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "model")
    again = HyperNetwork.load(tmp_path / "model", make_twice("b", "a"))
    assert_equal(hnet, again)
    assert [(s.name, s.aliases) for s in again.target.layout] == [("a.weight", ()), ("a.bias", ())]


def test_what_was_separate_may_not_be_tied(tmp_path):
    hnet = HyperNetwork(Declared(*ORDER, tied=False), Sparse(), TaskEmbedding(2, 8))
    hnet.save(tmp_path / "model")
    message = r"generates 'second.bias' of shape \[6\], this target has tied it to 'first.bias'"
    with pytest.raises(ValueError, match=message):
        HyperNetwork.load(tmp_path / "model", Declared(*ORDER))


def test_files_without_names_are_loaded(tmp_path):
    hnet = make()
    hnet.save(tmp_path / "model")
    older = edited(lambda c: (c.pop("task_names"), c.pop("conditioner_notes")))
    older(tmp_path / "model" / "config.json")
    assert_equal(hnet, HyperNetwork.load(tmp_path / "model", make_target()))
