"""How the time is shared among ways of adapting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers.small_tasks import plain, samples
from sparsehyper.adaptation import fitter, held_out
from sparsehyper.adaptation.held_out import hold_out
from sparsehyper.adaptation.samples import TaskSamples, Unsuitable
from sparsehyper.adaptation.ways import TUNED_WHOLE, WAYS, Start


class Clock:
    """A clock that only the ways below move."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def __deepcopy__(self, memo):
        return self


class Constant(nn.Module):
    """Logits that are right for the class 0 alone, by some margin."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, x):
        return torch.stack([self.margin * x[:, 0].sign(), -self.margin * x[:, 0].sign()], 1)


@pytest.fixture
def fits(make, monkeypatch):
    """Fit ways of which each takes all its time and more; returns what was fitted and how long."""

    def fit(count, names=tuple(WAYS), margins=None, more=0.0, **settings):
        clock, log = Clock(), []
        monkeypatch.setattr(held_out, "time", clock)

        def way(name):
            def run(start, rows, seed, deadline):
                log.append((name, round(deadline - clock.now, 6), len(rows)))
                clock.now = deadline + more
                margin = (margins or {}).get(name, 0.1)
                return Constant(margin.pop(0) if isinstance(margin, list) else margin)

            return run

        monkeypatch.setattr(held_out, "WAYS", {name: way(name) for name in WAYS})
        x, y = samples(99, count)[0], torch.arange(count) % 2
        x[:, 0] = 1 - 2.0 * y
        task = TaskSamples.of("new", (x, y), x.device, n_classes=2)
        hnet = make(plain())
        found = hold_out(Start(hnet, (0, 1, 2, 3), task), names, 0, clock.now + 70, **settings)
        return log, found

    return fit


def test_with_many_samples_the_best_that_tunes_all_has_most_of_the_time(fits):
    log, found = fits(5000, margins={"scratch": 3.0, "head": 9.0})
    names = [name for name, *_ in log]
    assert names == [*WAYS, "scratch"]
    looks, (_, longest, _) = [seconds for _, seconds, _ in log[:-1]], log[-1]
    assert longest == pytest.approx(70 - sum(looks))
    assert longest > 10 * max(looks)
    assert {count for *_, count in log} == {4000}
    assert found.once
    assert found.seconds["scratch"] == pytest.approx(longest + looks[-1])


@pytest.mark.parametrize("when", ["at once", "in a later fold", "on samples held out"])
def test_a_way_without_a_finite_loss_is_left_out(make, monkeypatch, when):
    fitted = []

    def way(start, rows, seed, deadline):
        fitted.append(len(rows))
        if when == "at once" or (when == "in a later fold" and len(fitted) > 1):
            raise Unsuitable("the loss is nan")
        return Constant(torch.nan if when == "on samples held out" else 0.1)

    ways = {"norms": way, "linear": WAYS["linear"]}
    monkeypatch.setattr(held_out, "WAYS", ways)
    task = TaskSamples.of("new", samples(99, classes=2), torch.device("cpu"), n_classes=2)
    start = Start(make(plain(), tasks=2), (0, 1), task)
    found = hold_out(start, list(ways), 0, math.inf)
    assert found.folds == (5, 5)
    assert len(fitted) == (2 if when == "in a later fold" else 1)
    assert list(found.unsuitable) == ["norms"]
    expected = "the loss of task 'new' is nan on samples held out; look at its samples"
    assert found.unsuitable["norms"] in ("the loss is nan", expected)
    for kept in (found.outputs, found.judged, found.seconds, found.models):
        assert list(kept) == ["linear"]


@pytest.mark.parametrize(("different", "folds"), [(4, 4), (20, 5), (1, 5)])
def test_equal_samples_are_held_out_together(make, monkeypatch, different, folds):
    fitted = []

    def way(start, rows, seed, deadline):
        fitted.append(rows)
        return Constant(0.1)

    monkeypatch.setattr(held_out, "WAYS", {"norms": way})
    x, y = samples(99, 20)[0][:different].repeat(60 // different, 1), torch.arange(60) % 2
    task = TaskSamples.of("new", (x, y), x.device)
    found = hold_out(Start(make(plain()), (0, 1, 2, 3), task), ["norms"], 0, math.inf)
    assert found.folds == (folds, folds)
    inputs = task.x.args[0]
    for rows in fitted:
        assert 0 < len(rows) < 60
        rest = ~torch.isin(torch.arange(60), rows)
        both = (inputs[rows][:, None] == inputs[rest]).all(2).any()
        assert both == (different == 1)  # where no others are left


def test_a_way_alone_has_all_of_the_time(fits):
    for name in ("embedding", *TUNED_WHOLE):
        assert fits(5000, (name,))[0] == [(name, 70.0, 4000)]


def test_with_fewer_samples_time_is_left_to_fit_all_ways_again(fits):
    log, found = fits(4999)
    assert [name for name, *_ in log] == list(WAYS)
    assert sum(seconds for _, seconds, _ in log) < 36
    assert not found.once


@pytest.mark.parametrize("count", [200, 5000])
def test_ways_that_no_time_is_left_for_are_not_tried(fits, count):
    log, found = fits(count, more=40.0)
    assert [name for name, *_ in log] == list(WAYS)[:2]  # in 70 seconds
    assert list(found.models) == list(WAYS)[:2]
    assert found.untried == list(WAYS)[2:]
    assert not found.unsuitable


def test_a_longer_fit_that_is_worse_is_not_taken(fits):
    log, found = fits(5000, margins={"scratch": [3.0, -3.0]})
    assert [name for name, *_ in log] == [*WAYS, "scratch"]
    assert found.models["scratch"].margin == 3


@pytest.mark.parametrize("way", ["linear", "head"])
def test_a_last_layer_is_solved_however_short_the_time_is(make, way):
    x, y = samples(99, 400)
    task = TaskSamples.of("new", (x, y), x.device)
    model = WAYS[way](Start(make(plain(), steps=30), (0, 1, 2, 3), task), torch.arange(400), 0, 0.0)
    assert float((model(task.x.args[0]).argmax(1) == task.y).float().mean()) > 0.6


def test_statistics_are_those_of_all_classes(make):
    x, y = samples(99, 4000)[0], torch.arange(4000) % 2
    task = TaskSamples.of("new", (x, y), x.device)
    some = Start(make(plain()), (0, 1, 2, 3), task).for_statistics(torch.arange(4000))
    assert 900 < int(some.y.sum()) < len(some.y) - 900 < 1200


def test_known_tasks_are_compared_on_samples_of_every_class(make):
    x = samples(99, 600)[0]
    task = TaskSamples.of("new", (x, torch.arange(600) % 3), x.device)
    known = Start(make(plain()), (0, 1, 2, 3), task).known_on
    assert known.losses(torch.arange(500, 600)).isfinite().all()  # of which none was compared


class Slow(nn.Sequential):
    """A target that takes a second a sample."""

    def __init__(self, clock):
        super().__init__(*plain())
        self.clock = clock

    def forward(self, x):
        self.clock.now += len(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("seconds", "models", "counts"), [(100, 1, 12), (600, 5, 12), (5e3, 40, 12), (1e5, 40, 204)]
)
def test_known_tasks_are_compared_in_a_tenth_of_the_time(
    make, monkeypatch, seconds, models, counts
):
    clock = Clock()
    monkeypatch.setattr(fitter, "time", clock)
    x = samples(99, 600)[0]
    task = TaskSamples.of("new", (x, torch.arange(600) % 3), x.device)
    start = Start(make(Slow(clock), tasks=40), tuple(range(40)), task, seconds)
    began, found = clock.now, start.known_on
    assert (len(found.places), len(found.task.y)) == (models, counts)
    assert clock.now - began <= max(seconds / 10, 12) + 24  # and trials
    assert found.seconds == pytest.approx(1, rel=0.3)
    assert set(start.nearest(torch.arange(600), 3)) <= set(found.places)
