"""NaN and infinity in a loss or gradient."""

from __future__ import annotations

import re

import pytest
import torch

from helpers.toy import N_CLASSES, NAMES, Model, Source, same
from sparsehyper.training import NonFiniteError, Run, TrainConfig, train


def fit(model, source=None, run=None, validation=None, **settings):
    config = TrainConfig(**{"steps": 20, "eval_every": 5, "device": "cpu", **settings})
    return train(
        model,
        source or Source(),
        validation or Source(),
        config,
        names=NAMES,
        n_classes=N_CLASSES,
        run=run,
        quiet=True,
    )


class Poisoned(Source):
    """One image of task 1 is NaN in the eighth batch."""

    def batch(self, epoch, step):
        x, y, task = super().batch(epoch, step)
        if (epoch, step) == (1, 2):
            x[(task == 1).nonzero()[0]] = float("nan")
        return x, y, task


@pytest.mark.parametrize(("accumulate", "step"), [(1, 8), (2, 4)])
def test_a_loss_names_step_and_task_and_stops_before_the_update(accumulate, step):
    model, sound = Model(), Model()
    with pytest.raises(
        NonFiniteError, match=f"the loss is nan at step {step}, on task 'bags'"
    ) as e:
        fit(model, Poisoned(), accumulate=accumulate, schedule="constant", eval_every=50)
    assert (e.value.step, e.value.tasks) == (step, ("bags",))
    fit(sound, steps=step - 1, accumulate=accumulate, schedule="constant", eval_every=50)
    assert same(model, sound)


def test_a_batch_of_one_task():
    class OneTask(Poisoned):
        def batch(self, epoch, step):
            x, y, task = super().batch(epoch, step)
            return x[task == 1], y[task == 1], task[task == 1]

    with pytest.raises(NonFiniteError, match="at step 8, on task 'bags'"):
        fit(Model(), OneTask())


class Explosive(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class ExplosiveModel(Model):
    def forward(self, x, task):
        return Explosive.apply(super().forward(x, task))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_alone(clip):
    model = ExplosiveModel()
    expected = "the norm of the gradient is (inf|nan) at step 1, on tasks 'shoes', 'bags', 'hats'"
    with pytest.raises(NonFiniteError, match=expected):
        fit(model, clip=clip)
    assert same(model, ExplosiveModel())


def test_the_last_good_checkpoint_stays(tmp_path):
    with Run.create(tmp_path / "run", {}) as run:
        last = re.escape(str(run.last))
        with pytest.raises(NonFiniteError, match=f"The last good checkpoint is {last}"):
            fit(Model(), Poisoned(), run=run)
        restored = Model(5)
        optimizer = torch.optim.Adam(restored.parameters())
        assert run.restore(restored, optimizer).step == 5
    assert all(parameter.isfinite().all() for parameter in restored.parameters())


def test_a_validation_loss(tmp_path):
    class Bad(Source):
        def batches(self, task, batch_size):
            for x, y, tasks in super().batches(task, batch_size):
                yield (x * float("nan") if task == 2 else x), y, tasks

    with (
        Run.create(tmp_path / "run", {}) as run,
        pytest.raises(
            NonFiniteError, match="validation loss is not finite after step 5, on task 'ha"
        ),
    ):
        fit(Model(), validation=Bad(), run=run)
    assert not run.last.exists()
