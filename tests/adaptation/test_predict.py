from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers.small_tasks import normed, samples
from sparsehyper import (
    HyperNetwork,
    InputEncoder,
    Noise,
    Sparse,
    SupportSet,
    average_predictions,
    fit_embedding,
    identify_task,
)


def test_tells_a_task_by_its_labels(make):
    hnet = make(tasks=4, steps=300)
    for task in range(4):
        x, y = samples(task)
        found = identify_task(hnet, x, y)
        assert found.name == f"known {task}"
        expected = nn.functional.cross_entropy(hnet.eval()(x, task=task), y)
        assert found.scores[found.name] == pytest.approx(expected.item(), abs=1e-5)


def test_tells_a_task_by_how_sure_its_predictions_are(make):
    hnet = make(nn.Linear(6, 3), tasks=3)
    hnet.eval()
    x = samples(0)[0]
    found = identify_task(hnet, x, n_classes=[3, 2, 3], batch_size=7)
    entropies = {}
    for task, classes in enumerate((3, 2, 3)):
        p = hnet(x, task=task)[:, :classes].softmax(1)
        entropies[f"known {task}"] = -(p * p.log()).sum(1).mean().item() / math.log(classes)
    assert found.scores == pytest.approx(entropies, abs=1e-5)
    assert found.name == min(entropies, key=entropies.get)


def test_a_label_that_a_task_lacks_rules_it_out(make):
    hnet = make(tasks=2)
    x, y = samples(0)
    found = identify_task(hnet, x, y, n_classes=[2, 3])
    assert found.name == "known 1"
    assert found.scores["known 0"] == math.inf


def test_identify_task_refuses_what_does_not_fit(make):
    hnet = make()
    x, y = samples(0)
    for arguments, message in (
        ((x[:0],), "at least one sample, got none"),
        ((x, y[:3]), r"integers \[60\], got shape \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            identify_task(hnet, *arguments)
    with pytest.raises(ValueError, match="`n_classes` must have 4 entries, got 1"):
        identify_task(hnet, x, n_classes=[2])
    for wrong in (1, [3, 3, 3, 1]):
        with pytest.raises(ValueError, match="`n_classes` must be at least 2, got 1"):
            identify_task(hnet, x, n_classes=wrong)
    with pytest.raises(
        TypeError, match=r"`x` must be a tensor .*, got a tuple; give x and y apart"
    ):
        identify_task(hnet, (x, y))


@pytest.mark.parametrize(
    "conditioner", [InputEncoder(nn.Linear(6, 8), 8), SupportSet(nn.Linear(6, 8), 8, 3), Noise(8)]
)
def test_no_task_is_told_where_none_has_a_name(conditioner):
    hnet = HyperNetwork(nn.Linear(6, 3), Sparse(), conditioner)
    with pytest.raises(TypeError, match="knows no tasks by name; its conditioner is a "):
        identify_task(hnet, samples(0)[0])


def test_one_number_of_classes_is_that_of_all_tasks(make):
    hnet = make(tasks=3)
    x, y = samples(0, classes=2)
    assert identify_task(hnet, x, y, n_classes=2) == identify_task(hnet, x, y, n_classes=[2] * 3)


def test_predictions_are_averaged_over_restarts(make):
    hnet = make(normed(), steps=30)
    x, y = samples(9)
    fit = fit_embedding(hnet, "new", (x, y), restarts=3, steps=10)
    mean = average_predictions(hnet, fit, x)
    assert mean.shape == (60, 3)
    torch.testing.assert_close(mean.sum(1), torch.ones(60))
    members = []
    for i in range(3):  # each is the task that would have been added
        hnet.add_task(f"member {i}", fit.embeddings[i])
        rows = [table[i : i + 1] for table in fit.statistics]
        hnet.target.statistics.set_rows(hnet.target.module, [5 + i], rows)
        members.append(hnet.eval()(x, task=f"member {i}").softmax(1))
    torch.testing.assert_close(mean, torch.stack(members).mean(0))
    assert not torch.allclose(members[0], members[1], atol=1e-3)
    assert average_predictions(hnet, fit, x, n_classes=2)[:, 2].max() == 0


def test_average_predictions_refuses_what_does_not_fit(make):
    hnet = make(nn.Linear(6, 1))
    x = samples(0)[0]
    fit = fit_embedding(
        hnet, "new", (x, x[:, :1]), steps=2, loss=lambda o, y: (o - y).square().mean(1)
    )
    with pytest.raises(ValueError, match=r"at least 2 classes, got shape \[60, 1\]"):
        average_predictions(hnet, fit, x)
    with pytest.raises(TypeError, match="`fit` must be what `fit_embedding` returned, got a str"):
        average_predictions(hnet, "new", x)
    with pytest.raises(ValueError, match="`n_classes` must be at least 2, got 1"):
        average_predictions(hnet, fit, x, n_classes=1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16])
def test_labels_of_any_integer_type_tell_the_same_task(make, dtype):
    hnet = make(tasks=3)
    x, y = samples(1)
    assert identify_task(hnet, x, y.to(dtype)) == identify_task(hnet, x, y)
    fits = [
        fit_embedding(make(tasks=3), "new", (x, labels), steps=3) for labels in (y, y.to(dtype))
    ]
    assert torch.equal(fits[0].embedding, fits[1].embedding)


@pytest.mark.parametrize("labels", [torch.zeros(60), torch.zeros(60).bool(), torch.full((60,), -1)])
def test_labels_that_are_no_class_numbers_are_refused(make, labels):
    with pytest.raises(ValueError, match=r"^`y` must be class numbers"):
        identify_task(make(), samples(0)[0], labels)
