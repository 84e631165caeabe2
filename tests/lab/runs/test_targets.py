from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehyper.lab.runs import build_target
from sparsehyper.lab.runs.targets import (
    UntrustedTargetError,
    check_trusted,
    function_of,
    recorded_target,
    spelled_out,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "text",
    [
        "mlp",
        "mlp:32-16",
        "cnn",
        "cnn:8-12",
        "cnn:8,norm=none",
        "cnn:8-12,norm=none,pool=stride",
        "cnn:4-4-4-4-4-4",
        "resnet",
        "resnet:depth=14,width=4,norm=none",
        "resnet9:width=4",
        "resnet9:width=4,norm=none",
        "thesis_resnet:blocks=2,width=4",
    ],
)
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 1, 9)])
def test_logits_of_any_image_shape(text, image_shape):
    target = build_target(text, image_shape, n_classes=30)
    logits = target(torch.randn(6, *image_shape))
    assert logits.shape == (6, 30)
    assert logits.min() < 0


def test_a_small_convolutional_networks_parameters():
    # 3 · 9 · 8 + 8 · 9 · 12, biases or norms, and the head's 12 · 4 · 4 · 10 + 10.
    plain = build_target("cnn:8-12,norm=none", (3, 32, 32), 10)
    assert count(plain) == 216 + 864 + 20 + 1930
    assert count(build_target("cnn:8-12", (3, 32, 32), 10)) == 216 + 864 + 2 * 20 + 1930
    strided = build_target("cnn:8-12,pool=stride,norm=none", (3, 32, 32), 10)
    assert count(strided) == 216 + 864 + 20 + 130


def test_a_convolutional_network_tells_places_apart():
    """Its last layer sees where something is, unlike one average over the whole image."""
    image = torch.zeros(2, 1, 32, 32)
    image[0, 0, 8:10, 8:10] = image[1, 0, 20:22, 20:22] = 1
    pooled = build_target("cnn:4-8", (1, 32, 32), 3).eval()(image)
    strided = build_target("cnn:4-8,pool=stride", (1, 32, 32), 3).eval()(image)
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-4)
    torch.testing.assert_close(strided[0], strided[1])


def test_convolutions_keep_the_size_and_pooling_halves_it():
    shapes = []
    target = build_target("cnn:4-5-6", (1, 105, 28), 2)
    for module in target:
        module.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    target(torch.randn(2, 1, 105, 28))
    halved = [(4, 105, 28), (4, 52, 14), (5, 52, 14), (5, 26, 7), (6, 26, 7), (6, 13, 3)]
    assert list(dict.fromkeys(shapes)) == [*halved, (6, 4, 3), (72,), (2,)]


@pytest.mark.parametrize(
    ("text", "now", "before"),
    [
        ("mlp", "mlp:128-64", "mlp:128-64"),
        ("cnn", "cnn:16-32-64,norm=batch,pool=max", "cnn:16-32-64,norm=none,pool=stride"),
        ("cnn:8,norm=batch", "cnn:8,norm=batch,pool=max", "cnn:8,norm=batch,pool=stride"),
        ("cnn:8,pool=max,norm=none", *["cnn:8,norm=none,pool=max"] * 2),
        (
            "resnet18/masked:0.9",
            "resnet:depth=18,width=64,stages=4,norm=batch/masked:0.9",
            "resnet:depth=18,width=64,stages=4,norm=none/masked:0.9",
        ),
        ("thesis_resnet", *["thesis_resnet:blocks=5,width=16"] * 2),
        ("mine:net", "mine:net", "mine:net"),
        ("what", "what", "what"),
    ],
)
def test_every_setting_is_spelled_out_by_the_defaults_of_its_time(text, now, before):
    assert (spelled_out(text), recorded_target(text)) == (now, before)
    assert {spelled_out(t) for t in (now, before)} == {now, before}
    assert recorded_target(now) == now


def test_an_mlps_parameters():
    assert count(build_target("mlp:400-400-400", (1, 28, 28), 10)) == 638_810
    assert count(build_target("mlp", (1, 28, 28), 2)) == count(
        build_target("mlp:128-64", (1, 28, 28), 2)
    )


def test_resnet18_is_that_of_section_41_on_the_stem_for_small_images():
    plain = build_target("resnet:depth=18,width=64,stages=4,norm=none", (3, 32, 32), 100)
    # The usual one, without norms (9,600), projections (172,032), and with biases (4,800 − 100).
    stem_7x7 = 64 * 3 * (49 - 9)
    projections, norms, head = 172_032, 9_600, 512 * 1000 + 1000
    usual = 11_689_512 - stem_7x7 - projections - norms - head
    biases = 64 * 5 + 128 * 4 + 256 * 4 + 512 * 4
    assert count(plain) == usual + biases + 512 * 100 + 100
    assert plain(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    shortened = build_target("resnet18", (3, 32, 32), 100)
    assert count(shortened) == count(plain) - biases + norms - 2 * (128 + 256 + 512)


def test_resnet32_is_hes_with_biases_for_norms():
    plain = build_target("resnet:depth=32,norm=none", (3, 32, 32), 10)
    assert count(plain) == 463_018
    batch_normed = build_target("resnet32", (3, 32, 32), 10)
    assert count(batch_normed) == 464_154  # 0.46M in the paper's table 6
    assert not any("conv" in name for name, _ in batch_normed.named_parameters())
    layers = [m for m in batch_normed.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 32


def test_the_thesis_s_residual_network_has_its_size_and_depth():
    target = build_target("thesis_resnet", (3, 32, 32), 10)
    assert count(target) == 426_426
    layers = [m for m in target.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([m for m in layers if m.weight.shape[2:] != (1, 1)]) == 30
    with pytest.raises(ValueError, match=r"`blocks` must be at least 2, got 1"):
        build_target("thesis_resnet:blocks=1", (3, 32, 32), 10)


def test_resnet9_adds_the_input_of_its_blocks():
    block = build_target("resnet9:width=4,norm=none", (3, 8, 8), 2).eval()[2]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_a_shortcut_passes_every_second_pixel_and_pads_channels():
    block = build_target("resnet:width=4,norm=none", (1, 8, 8), 2).blocks[1]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(2, 4, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert y.shape == (2, 8, 4, 4)
    assert not y[:, 4:].any()


def test_your_own_factory(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(image_shape, n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1], n_classes))\n"
        "def shape(image_shape, n_classes):\n"
        "    return image_shape\n"
        "def none():\n"
        "    return nn.Linear(1, 1)\n"
        "def inside(features, n_classes):\n"
        "    return nn.Linear(features, n_classes)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build_target("mine:net", (1, 8, 1), 4)(torch.randn(2, 1, 8, 1)).shape == (2, 4)
    with pytest.raises(TypeError, match=r"'mine:shape' must return an nn.Module, got \(1, 8, 1\)"):
        build_target("mine:shape", (1, 8, 1), 4)
    with pytest.raises(TypeError, match="'mine:number' must be a function, got 3"):
        build_target("mine:number", (1, 8, 1), 4)
    with pytest.raises(TypeError, match="`target` 'mine:zzz' was not found: mine has no 'zzz'"):
        build_target("mine:zzz", (1, 8, 1), 4)
    for name in ("none", "inside"):
        message = rf"`target` 'mine:{name}' is called as {name}\(image_shape, n_classes\).*failed: "
        with pytest.raises(TypeError, match=message):
            build_target(f"mine:{name}", (1, 8, 1), 4)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("mpl", ValueError, "`target` 'mpl' is unknown; forms: mlp:128-64 "),
        ("mlp:", ValueError, "'mlp:' must name the widths of its hidden layers"),
        ("mlp:32-0", ValueError, "`target` must be at least 1, got 0 in 'mlp:32-0'"),
        ("cnn:8-x", ValueError, "'cnn:8-x' must name the widths .* or cnn:16-32-64"),
        ("cnn:8,norm=layer", ValueError, "`norm` must be one of 'batch', 'none'.*got 'layer'"),
        ("cnn:8,pool=mean", ValueError, "`pool` must be one of 'max', 'stride'.*got 'mean'"),
        ("cnn:8,9", ValueError, "'cnn:8,9' has no setting '9'; a cnn has: norm, pool"),
        ("mlp:32,16", ValueError, "'mlp:32,16' must name the widths"),
        (
            "resnet:layers=8",
            ValueError,
            "no setting 'layers'; a resnet has: depth, width, stages, norm",
        ),
        ("resnet:depth=deep", ValueError, "`depth` of `target` .* integer, got 'deep'"),
        ("resnet:depth=9", ValueError, r"`depth` must be 6n \+ 2, such as 8.*, got 9"),
        ("resnet:depth=2", ValueError, "`depth` must be at least 8, got 2"),
        ("resnet:width=0", ValueError, "`width` must be at least 1, got 0"),
        ("resnet:norm=layer", ValueError, "`norm` must be one of 'batch', 'none'; got 'layer'"),
        ("no_such_module:net", ImportError, "'no_such_module' cannot be imported"),
    ],
)
def test_errors(text, error, message):
    with pytest.raises(error, match=message):
        build_target(text, (1, 8, 8), 2)


def test_no_classes():
    with pytest.raises(ValueError, match="`n_classes` must be at least 1, got 0"):
        build_target("mlp", (1, 8, 8), 0)


def test_a_masked_target_has_its_zeros_and_generates_none_of_them():
    whole = build_target("cnn:8-16,norm=batch", (3, 8, 8), 4)
    adapted = build_target("cnn:8-16,norm=batch/masked:0.75", (3, 8, 8), 4)
    assert adapted(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    weights = [name for name, p in whole.named_parameters() if p.ndim > 1]
    zeros = sum(int((adapted.get_submodule(n[:-7]).weight == 0).sum()) for n in weights)
    numbers = sum(whole.get_parameter(name).numel() for name in weights)
    assert zeros == pytest.approx(0.75 * numbers, abs=len(weights))
    assert count(whole) - count(adapted) == zeros


@pytest.mark.parametrize("text", ["mlp:8/masked", "mlp:8/masked:much", "mlp:8/pruned:0.5"])
def test_what_can_follow_a_target(text):
    with pytest.raises(
        ValueError, match=rf"can be followed by /masked:SPARSITY, .*got '{text[6:]}'"
    ):
        build_target(text, (1, 8, 8), 2)


def test_a_sparsity_out_of_range():
    with pytest.raises(ValueError, match=r"`sparsity` must be at least 0 and below 1, got 1.5"):
        build_target("mlp:8/masked:1.5", (1, 8, 8), 2)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("mlp", None),
        ("cnn:8", None),
        ("resnet32/masked:0.9", None),
        ("resnet32:os", "resnet32:os"),
        ("mine:net", "mine:net"),
        ("mine.models:net/masked:0.9", "mine.models:net"),
        ("mine:net:net", None),
        ("./mine:net", None),
        ("mine", None),
        ("", None),
    ],
)
def test_targets_that_are_functions_are_told_from_ours(text, function):
    assert function_of(text) == function


@pytest.mark.parametrize("text", ["mine:net:net", ".mine:net", "mine:", ":net", "mine:n t"])
def test_what_is_no_name_of_a_function_is_never_imported(text):
    with pytest.raises(ValueError, match="is unknown; forms: mlp"):
        build_target(text, (1, 8, 8), 2)


def test_a_function_that_a_file_names_needs_trust():
    check_trusted("mlp:8", (), "file")
    check_trusted("mine:net/masked:0.5", ["mine:net"], "file")
    for text, trust in (("mine:net", []), ("mine:net", ["mine:other"]), ("mine:n", ["mine:net"])):
        with pytest.raises(UntrustedTargetError, match=rf"^file names the target '{text}'"):
            check_trusted(text, trust, "file")
    with pytest.raises(TypeError, match=r"`trust` must be a list .* \['mine:net'\], got a string"):
        check_trusted("mine:net", "mine:net", "file")
