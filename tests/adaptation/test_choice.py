from __future__ import annotations

import math

import pytest
import torch

from helpers.small_tasks import samples
from sparsehyper import Ridge
from sparsehyper._util.inputs import Inputs
from sparsehyper.adaptation.choice import choose
from sparsehyper.adaptation.held_out import HeldOut, hold_out
from sparsehyper.adaptation.judge import fold_numbers
from sparsehyper.adaptation.samples import TaskSamples
from sparsehyper.adaptation.usual import (
    USUAL,
    USUAL_WHERE_UNLIKE,
    USUAL_WITH_HEAD,
    usual_given,
    usual_of,
    usual_on,
)
from sparsehyper.adaptation.ways import Start

NAMES = ("linear", "embedding", "scratch")


def held(outputs, judged=None, count=60):
    """What `choose` needs to know of outputs on all samples."""
    everywhere = torch.ones(count, dtype=torch.bool)
    found = HeldOut(everywhere)
    for name, some in outputs.items():
        found.outputs[name] = some
        found.judged[name] = everywhere if judged is None else judged[name]
    return found


def task_of(y, x=None):
    x = torch.arange(len(y))[:, None].float() if x is None else x
    return TaskSamples("new", Inputs.of(x), y, 3)


def test_the_way_that_knows_the_labels_is_chosen():
    y = torch.randint(3, (60,))
    good = 3 * torch.nn.functional.one_hot(y, 3).float()
    choice = choose(held({"linear": good, "scratch": -good}), task_of(y), USUAL)
    assert list(choice.weights) == ["linear"]
    assert choice.right.all()
    assert choice.losses["linear"] < choice.losses["scratch"]


def test_the_accuracy_of_ways_that_guess_is_that_of_guessing():
    """The best of seven on the samples that it was chosen by has 0.46."""
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(50):
        y = torch.randint(3, (12,), generator=generator)
        outputs = {name: 3 * torch.randn(12, 3, generator=generator) for name in USUAL}
        choice = choose(held(outputs, count=12), task_of(y), USUAL)
        assert choice.judged.all()
        shares.append(choice.right.float().mean())
    assert 0.27 < torch.stack(shares).mean() < 0.4


@pytest.mark.parametrize("count", [1, 6])
def test_it_is_that_where_a_part_of_the_samples_is_held_out(count):
    """As where time suffices for one fold: the best of seven on six would have 0.52."""
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(60):
        y = torch.randint(3, (30,), generator=generator)
        found = held(
            {name: 3 * torch.randn(30, 3, generator=generator) for name in USUAL}, count=30
        )
        found.out[:] = fold_numbers(y, torch.arange(30), 5) == 0
        found.out[found.out.nonzero()[count:]] = False
        choice = choose(found, task_of(y), USUAL)
        assert torch.equal(choice.judged, found.out)
        shares.append(choice.right.float().mean())
    assert 0.2 < torch.stack(shares).mean() < 0.43


def test_ways_are_weighted_without_the_copies_of_a_sample():
    """A way that knows the labels of one input alone cannot be chosen for it by its copies."""
    y, x = torch.arange(24) % 3, torch.arange(24)[:, None] // 12 * 1.0
    labels = 9 * torch.nn.functional.one_hot(y, 3).float()
    outputs = {"linear": torch.where(x == 0, labels, -labels)}
    outputs["scratch"] = -outputs["linear"]
    assert not choose(held(outputs, count=24), task_of(y, x), USUAL).right.any()


def test_a_way_that_no_sample_judges_is_worth_what_is_usual():
    y = torch.randint(3, (60,))
    judged = {"embedding": torch.ones(60) > 0, "scratch": torch.zeros(60) > 0}
    for sign, first in ((1, "embedding"), (-1, "scratch")):
        sure = sign * 9 * torch.nn.functional.one_hot(y, 3).float()
        outputs = {"embedding": sure, "scratch": torch.zeros(60, 3)}
        choice = choose(held(outputs, judged), task_of(y), USUAL)
        assert next(iter(choice.weights)) == first
        assert choice.losses["scratch"] == pytest.approx(USUAL["scratch"].loss * math.log(3))


def test_every_sample_is_held_out_once(make):
    x, y = samples(3, 40)
    start = Start(make(), (0, 1, 2, 3), TaskSamples("new", Inputs.of(x), y, 3))
    found = hold_out(start, NAMES, 0, math.inf)
    assert found.folds == (5, 5)
    assert found.share == pytest.approx(0.8)
    for name in NAMES:
        assert found.judged[name].all()
        assert (found.outputs[name].abs().sum(1) > 0).all()


def test_one_example_a_class_judges_the_embedding_alone(make):
    x, y = samples(3, 3)
    start = Start(make(), (0, 1, 2, 3), TaskSamples("new", Inputs.of(x), y, 3))
    found = hold_out(start, NAMES, 0, math.inf)
    assert [bool(found.judged[name].any()) for name in NAMES] == [False, True, False]
    assert found.judged["embedding"].all()


def test_without_time_one_fold_is_done(make):
    x, y = samples(3, 40)
    start = Start(make(), (0, 1, 2, 3), TaskSamples("new", Inputs.of(x), y, 3))
    found = hold_out(start, NAMES, 0, 0.0)
    assert found.folds == (1, 5)
    assert int(found.out.sum()) == 8


def test_what_is_usual_comes_from_tasks_learned_anew(make):
    hnet = make(steps=30)
    start = Start(
        hnet, (0, 1, 2, 3), TaskSamples.of("new", samples(9), torch.device("cpu"), n_classes=3)
    )
    known = {f"known {i}": samples(i) for i in range(4)}
    found = usual_on(start, known, 20, NAMES, 0, math.inf)
    # classes that a linear map separates
    assert found["linear"].loss < USUAL["linear"].loss - 0.1
    assert USUAL["linear"].skill + 0.1 < found["linear"].skill < 1
    assert found["linear"].weight > USUAL["linear"].weight
    assert found["head"] == USUAL["head"]


def test_known_tasks_with_samples_that_are_not_finite_tell_nothing(make):
    start = Start(
        make(), (0, 1, 2, 3), TaskSamples.of("new", samples(9), torch.device("cpu"), n_classes=3)
    )
    x, y = samples(0, 300)
    x[20:] = torch.nan
    assert usual_on(start, {"known 0": (x, y)}, 5, NAMES, 0, math.inf) == USUAL


def test_a_task_unlike_the_known_ones_is_not_judged_by_them(make):
    y = torch.arange(9) % 3
    start = Start(make(), (0, 1, 2, 3), task_of(y))
    right = 5 * torch.nn.functional.one_hot(y, 3).float()
    assert usual_given(USUAL, start, right, y) == USUAL
    found = usual_given(USUAL, start, -right, y)
    assert found == USUAL_WHERE_UNLIKE
    between = usual_given(USUAL, start, 0.2 * right, y)
    for name in NAMES:
        ends = sorted((USUAL[name].weight, USUAL_WHERE_UNLIKE[name].weight))
        assert ends[0] < between[name].weight < ends[1]


def test_a_head_in_closed_form_learns_any_task_alike(make):
    y = torch.arange(9) % 3
    start = Start(make(head=Ridge()), (0, 1, 2, 3), task_of(y))
    wrong = -5 * torch.nn.functional.one_hot(y, 3).float()
    assert usual_given(USUAL_WITH_HEAD, start, wrong, y) == USUAL_WITH_HEAD


def test_known_tasks_do_not_judge_ways_by_copies(make):
    """Every sample is one that the task was learned anew from."""
    hnet = make(tasks=2)
    x, y = samples(0, 3)
    start = Start(hnet, (0, 1), TaskSamples.of("new", samples(99, 3), x.device))
    known = {"known 0": (x.repeat(20, 1), y.repeat(20))}
    assert usual_on(start, known, 1, ["linear"], 0, math.inf) == usual_of(start)
