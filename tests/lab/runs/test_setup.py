from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from sparsehyper.lab.data import TaskInfo
from sparsehyper.lab.runs import (
    METHODS,
    DataConfig,
    build_model,
    load_tasks,
    make_batches,
    resolve,
)
from sparsehyper.lab.runs.config import EXPERIMENT_CONDITIONERS
from sparsehyper.training.sources import condition


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_model_and_nothing_else_does(with_method, tasks, method):
    experiment = with_method(method)
    torch.manual_seed(1)
    model = build_model(experiment, tasks)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    assert states_equal(model, build_model(experiment, tasks))
    assert not states_equal(model, build_model(experiment.with_seed(1), tasks))
    assert model(torch.randn(3, 1, 8, 8), task=torch.tensor([0, 4, 0])).shape == (3, 2)


def test_a_model_needs_no_images(experiment, tasks):
    info = TaskInfo.from_dict(json.loads(json.dumps(tasks.to_dict())))
    assert info.to_dict() == tasks.to_dict()
    assert info == TaskInfo.from_dict(tasks.to_dict()) != tasks
    assert states_equal(build_model(experiment, info), build_model(experiment, tasks))


@pytest.mark.parametrize("conditioner", EXPERIMENT_CONDITIONERS)
def test_the_seed_decides_the_conditioner_too(experiment, tasks, conditioner):
    own = replace(experiment, conditioner=conditioner)
    model = build_model(own, tasks)
    assert states_equal(model, build_model(own, TaskInfo.from_dict(tasks.to_dict())))
    other = build_model(own.with_seed(1), tasks)
    for (name, one), another in zip(
        model.conditioner.named_parameters(), other.conditioner.parameters(), strict=True
    ):
        assert not one.any() or not torch.equal(one, another), name  # biases start at 0
    assert model(torch.randn(3, 1, 8, 8), **condition(model, 2)).shape == (3, 2)


def test_encoders_have_the_form_of_the_target_without_its_batch_norms_and_mask(experiment, tasks):
    own = replace(experiment, target="cnn:4-8/masked:0.5", conditioner="support_set")
    model = build_model(own, tasks)
    encoder = model.conditioner.support.encoder
    kinds = [type(part) for part in encoder.modules()]
    assert kinds.count(torch.nn.Conv2d) == 2
    assert torch.nn.BatchNorm2d not in kinds
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))


def test_support_sets_are_balanced_and_leave_images_over(experiment, tasks):
    model = build_model(replace(experiment, conditioner="support_set"), tasks)
    name = tasks.names[1]
    torch.manual_seed(0)
    counts = [model.conditioner.draw(name)[1].bincount().tolist() for _ in range(20)]
    assert {tuple(count) for count in counts} == {(1, 1), (5, 5), (20, 20)}
    few = tasks.train.among(torch.arange(len(tasks.train.pixels)) % 12 == 0)
    scarce = build_model(replace(experiment, conditioner="support_set"), replace(tasks, train=few))
    least = int(few.labels(1).bincount().min())
    assert 2 < least < 40
    drawn = [scarce.conditioner.draw(name)[1].bincount().tolist() for _ in range(20)]
    assert max(map(max, drawn)) == least // 2


def test_experts_differ_from_each_other(with_method, tasks):
    first, second, *_ = build_model(with_method("experts"), tasks).experts
    assert not states_equal(first, second)


@pytest.mark.parametrize("method", ["sparse", "chunked"])
def test_a_budget_is_met(with_method, tasks, method):
    experiment = with_method(method, budget=4, target="mlp:128-64", base="zeros")
    model = build_model(experiment, tasks)
    resolved = resolve(tasks, model)
    assert resolved["numel"] == 16_706
    generator = sum(p.numel() for p in model.generator.parameters())
    assert 3.4 < generator / 16_706 <= 4  # with few chunks the steps are large
    assert resolved["trainable_parameters"] == generator + 5 * 8
    assert resolved["generator"]["kind"] == method
    assert resolved["tasks"]["fingerprint"] == tasks.fingerprint
    json.dumps(resolved)


@pytest.mark.parametrize("base", ["learned", "residual"])
def test_a_trained_base_takes_its_part_of_the_budget(with_method, tasks, base):
    experiment = with_method("sparse", budget=4, base=base)
    model = build_model(experiment, tasks)
    numel = model.target.numel
    assert model.target.base.numel() == numel
    assert sum(p.numel() for p in model.generator.parameters()) <= 3 * numel
    assert sum(p.numel() for p in model.parameters()) > 3.9 * numel
    fixed = build_model(with_method("sparse", budget=4, base="pretrained"), tasks)
    assert sum(p.numel() for p in fixed.parameters()) > 3.9 * numel
    message = rf"`budget` must be greater than 1 where `base` is '{base}', .*; got 1"
    with pytest.raises(ValueError, match=message):
        build_model(with_method("sparse", budget=1, base=base), tasks)


def test_a_budget_out_of_reach(with_method, tasks):
    with pytest.raises(ValueError, match=r"`budget` must be at least .* for a dense .*, got 4296"):
        build_model(with_method("dense", budget=4, base="zeros"), tasks)


def test_what_a_baseline_resolves_to(with_method, tasks):
    experiment = with_method("experts")
    resolved = resolve(tasks, build_model(experiment, tasks))
    assert resolved["numel"] * 5 == resolved["trainable_parameters"]
    assert resolved["generator"] is None


def test_batches_follow_the_seed_and_the_settings(experiment, tasks):
    mixed = replace(experiment, tasks_per_batch=5, augment=("crop",))
    x, _, task = make_batches(mixed, tasks).batch(0, 0)
    assert torch.equal(x, make_batches(mixed, tasks).batch(0, 0).x)
    assert not torch.equal(x, make_batches(mixed.with_seed(1), tasks).batch(0, 0).x)
    assert len(x) == 20
    assert len(task.unique()) > 1
    half = make_batches(mixed, tasks, shard=(1, 2)).batch(0, 0)
    assert torch.equal(half.x, x[1::2])


def test_the_split_follows_its_own_seed(experiment, tasks):
    other = load_tasks(replace(experiment.data, seed=1))
    assert other.fingerprint != tasks.fingerprint


def test_a_folder_of_images(tmp_path):
    for number in range(24):
        path = tmp_path / "shoes" / ("boot", "clog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6 + number % 2, 6), 10 * number).save(path)
    tasks = load_tasks(DataConfig(str(tmp_path), image_size=5))
    assert tasks.classes == (("boot", "clog"),)
    assert tasks.image_shape == (1, 5, 5)


def test_neither_a_source_nor_a_folder():
    with pytest.raises(FileNotFoundError, match=r"one of 'digits', .*; got 'digit'"):
        load_tasks(DataConfig("digit"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"names": "ab"}, TypeError, "`names` must be a list, got 'ab'"),
        ({"names": [1, 2]}, TypeError, "`names` must be strings, got 1"),
        ({"names": ["a"]}, ValueError, "`classes` must have one entry, .* for 1 and"),
        ({"classes": ["xy", "xy"]}, TypeError, "`classes` must be lists of names, got 'xy'"),
        ({"image_shape": [1, 8]}, ValueError, "`image_shape` 3 numbers"),
        ({"image_shape": [1, 8, 0]}, ValueError, "`image_shape` must be at least 1, got 0"),
        ({"image_shape": [1, 8, "8"]}, TypeError, "`image_shape` must be an integer, got '8'"),
        ({"mean": [0.5, 0.5]}, ValueError, "`mean` must have 1 numbers"),
        ({"std": [None]}, TypeError, "`std` must be a number, got None"),
        ({"fingerprint": 7}, TypeError, "must be strings, got 7"),
    ],
)
def test_tasks_of_a_damaged_configuration_are_refused(changes, error, message):
    values = {
        "names": ["a", "b"],
        "classes": [["x", "y"], ["x", "y"]],
        "image_shape": [1, 8, 8],
        "mean": [0.5],
        "std": [0.25],
        "fingerprint": "0",
    }
    assert TaskInfo.from_dict(values).names == ("a", "b")
    with pytest.raises(error, match=message):
        TaskInfo.from_dict({**values, **changes})
    for name in values:
        with pytest.raises(KeyError, match=name):
            TaskInfo.from_dict({key: value for key, value in values.items() if key != name})
    with pytest.raises(TypeError, match="`tasks` must be an object, got None"):
        TaskInfo.from_dict(None)
