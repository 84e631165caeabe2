from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.toy import N_CLASSES, NAMES, Model, Source, same
from sparsehyper.training import NonFiniteError, Run, TrainConfig, evaluate, train
from sparsehyper.training.checkpoint import TrainingState
from sparsehyper.training.config import OPTIMIZERS


def fit(model, steps=20, *, source=None, run=None, **settings):
    config = TrainConfig(**{"steps": steps, "eval_every": 10, "device": "cpu", **settings})
    source = source or Source()
    return train(
        model, source, Source(), config, names=NAMES, n_classes=N_CLASSES, run=run, quiet=True
    )


def test_it_learns():
    model = Model()
    before = evaluate(model, Source(), n_classes=N_CLASSES)
    result = fit(model, 150, lr=0.03)
    assert before.accuracy < 0.7
    assert result.best.accuracy > 0.85
    assert result.best.tasks == NAMES
    assert result.steps == 150
    assert result.seconds > 0
    assert result.step_ms > 0
    assert result.peak_memory > 10**7
    assert json.loads(json.dumps(result.to_dict()))["best"]["accuracy"] == result.best.accuracy


def test_the_updates_are_those_of_a_plain_loop():
    model, plain = Model(dropout=0.0), Model(dropout=0.0)
    fit(model, 3, optimizer="sgd", lr=0.1, schedule="constant", eval_every=3, clip=0.5)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    outputs = torch.arange(3)
    for step in range(3):
        x, y, task = Source().batch(0, step)
        logits = plain(x, task)
        logits = logits.masked_fill(outputs >= torch.tensor(N_CLASSES)[task, None], -torch.inf)
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_accumulated_batches_make_one_update():
    class Doubled(Source):
        """One batch with the samples of two batches of `Source`."""

        def batch(self, epoch, step):
            parts = (super(Doubled, self).batch(*divmod(2 * step + i, 5)) for i in range(2))
            return tuple(map(torch.cat, zip(*parts, strict=True)))

    one, two = Model(dropout=0.0), Model(dropout=0.0)
    fit(one, 2, accumulate=2, optimizer="sgd")
    fit(two, 2, source=Doubled(), optimizer="sgd")
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_batches_are_asked_for_by_epoch_and_step():
    asked = []

    class Noted(Source):
        def batch(self, epoch, step):
            asked.append((epoch, step))
            return super().batch(epoch, step)

    fit(Model(), 4, source=Noted(), accumulate=2)
    assert asked[:8] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]


def test_a_batch_of_one_task_goes_in_as_an_int():
    seen = []

    class Noted(Model):
        def forward(self, x, task):
            if self.training:
                seen.append(task)
            return super().forward(x, task)

    fit(Noted(), 3, source=Source(tasks_per_batch=1))
    assert all(isinstance(task, int) for task in seen)
    seen.clear()
    fit(Noted(), 1, source=Source(tasks_per_batch=3))
    assert seen[0].shape == (12,)


def test_same_seed_same_weights_and_another_seed_another_dropout():
    models = [Model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, 5, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_noise_differs_from_step_to_step():
    model, dropped = Model(dropout=0.5), []
    model.dropout.register_forward_hook(lambda module, x, y: dropped.append(y == 0))
    fit(model, 2)
    assert not torch.equal(dropped[0], dropped[1])


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(Model(), 2)
    assert torch.equal(torch.rand(2), expected)


def test_the_model_ends_as_the_best_evaluation_and_in_its_own_mode():
    model = Model().eval()
    result = fit(model, 60, lr=3.0, schedule="constant", eval_every=5)
    assert result.best_step < 60
    assert not model.training
    assert evaluate(model, Source(), names=NAMES, n_classes=N_CLASSES) == result.best


def test_of_equally_accurate_evaluations_the_one_with_the_lowest_loss_is_best(tmp_path):
    with Run.create(tmp_path / "run", {}) as run:
        result = fit(Model(), 30, lr=1e-7, schedule="constant", eval_every=5, run=run)
        lines = [line for line in run.read_metrics() if line["kind"] == "validation"]
    assert len({line["accuracy"] for line in lines}) == 1
    losses = [line["loss"] for line in lines]
    assert result.best.loss == min(losses) < losses[0]
    assert result.best_step == lines[losses.index(min(losses))]["step"]


def test_early_stopping():
    result = fit(Model(), 1000, lr=1e-9, eval_every=5, patience=3)
    assert result.steps == 5 + 5 * 3  # the accuracy is that of the first evaluation


def test_frozen_parameters_stay():
    model = Model()
    model.shared.requires_grad_(False)
    before = copy.deepcopy(model.shared)
    fit(model, 5)
    assert same(before, model.shared)


def test_bf16_learns_with_float32_weights():
    dtypes = set()
    model = Model()
    model.shared.register_forward_hook(lambda module, x, y: dtypes.add(y.dtype))
    assert fit(model, 100, lr=0.03, precision="bf16").best.accuracy > 0.8
    assert dtypes == {torch.bfloat16}
    assert model.shared.weight.dtype == torch.float32


def test_compile_wraps_the_model_once_and_leaves_its_state(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model, plain = Model(), Model()
    with Run.create(tmp_path / "run", {}) as run:
        fit(model, 3, compile=True, run=run)
    fit(plain, 3)
    assert compiled == [model]
    assert same(model, plain)


def test_metrics(tmp_path):
    with Run.create(tmp_path / "run", {}) as run:
        fit(Model(), 20, run=run, log_every=4, warmup=8, lr=0.08, schedule="constant")
        lines = run.read_metrics()
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == [4, 8, 10, 12, 16, 20]
    assert [line["lr"] for line in train_lines][:3] == pytest.approx([0.04, 0.08, 0.08])
    assert train_lines[0]["epoch"] == 0.8
    assert all(line["grad_norm"] > 0 and line["images_per_second"] > 0 for line in train_lines)
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validation] == [10, 20]
    assert validation[0]["accuracies"].keys() == set(NAMES)


def test_a_run_directory_changes_nothing(tmp_path):
    alone, kept = Model(), Model()
    fit(alone, 30)
    with Run.create(tmp_path / "run", {}) as run:
        fit(kept, 30, run=run)
    assert same(alone, kept)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_on_equals_never_having_stopped(tmp_path, optimizer):
    whole, parts = Model(), Model()
    settings = {"schedule": "plateau", "plateau_patience": 1, "lr": 0.1, "clip": None}
    settings["optimizer"] = optimizer
    fit(whole, 40, **settings)
    with Run.create(tmp_path / "run", {}) as run:
        fit(parts, 20, run=run, **settings)
    parts = Model(seed=9)
    with Run.open(tmp_path / "run") as run:
        result = fit(parts, 40, run=run, **settings)
    assert same(whole, parts)
    assert result.steps == 40


def test_going_on_with_a_finished_run_does_nothing(tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        first = fit(model, 20, run=run)
    again = Model(seed=9)
    with Run.open(tmp_path / "run") as run:
        second = fit(again, 20, run=run)
    assert same(model, again)
    assert (second.steps, second.best, second.step_ms) == (20, first.best, None)


def test_fewer_steps_than_already_made(tmp_path):
    with Run.create(tmp_path / "run", {}) as run:
        fit(Model(), 20, run=run)
    with (
        Run.open(tmp_path / "run") as run,
        pytest.raises(ValueError, match="`steps` is 10; the run has already made 20"),
    ):
        fit(Model(), 10, run=run)


def test_steps_already_made_without_an_evaluation(tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        optimizer = torch.optim.Adam(model.parameters())
        run.save(model, optimizer, TrainingState(step=3), best=False)
        with pytest.raises(ValueError, match=r"`steps` is 3; the run .* has no best evaluation"):
            fit(model, 3, run=run)


def test_updates_that_were_made_but_not_evaluated_need_more(tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        first = fit(model, 20, run=run)
        optimizer = torch.optim.Adam(model.parameters())
        state = TrainingState(23, [first.best.accuracy] * 2, 20, first.best)
        run.save(model, optimizer, state, best=False)
        with pytest.raises(ValueError, match="`steps` is 23; the run has made them, but has not"):
            fit(model, 23, run=run)
        assert fit(model, 30, run=run).steps == 30


def test_patience_does_not_run_out_before_a_damaged_best_is_replaced(tmp_path):
    model = Model()
    with Run.create(tmp_path / "run", {}) as run:
        optimizer = torch.optim.Adam(model.parameters())
        run.save(model, optimizer, TrainingState(30, [0.5, 0.4, 0.3]), best=False)
        assert fit(model, 50, run=run, patience=2).best_step in (40, 50)


def test_a_metric_that_is_no_number_is_told(tmp_path):
    config = TrainConfig(steps=4, eval_every=2, device="cpu")

    def metric(out, _):
        return out[:, 0] * float("nan")

    with pytest.raises(NonFiniteError, match="the `metric` is not finite after step 2, on "):
        train(Model(), Source(), Source(), config, metric=metric, names=NAMES, quiet=True)


def test_a_task_without_validation_images_is_found_before_anything_is_trained():
    class Empty(Source):
        counts = (40, 0, 20)

    model, before = Model(), Model()
    config = TrainConfig(steps=5, device="cpu")
    with pytest.raises(ValueError, match="task 'bags' has no samples to evaluate on"):
        train(model, Source(), Empty(), config, names=NAMES, quiet=True)
    assert same(model, before)


def test_a_model_with_nothing_to_train():
    with pytest.raises(ValueError, match="`model` has no parameter that requires a gradient"):
        fit(Model().requires_grad_(False))
