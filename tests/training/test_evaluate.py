from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers.toy import N_CLASSES, NAMES, Model, Source
from sparsehyper.training import Evaluation, evaluate


class Constant(nn.Module):
    """The same logits whatever the input."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.tasks: list[int] = []

    def forward(self, x, task):
        self.tasks.append(task)
        return self.logits.expand(len(x), -1)


class Given:
    """Labels given task by task."""

    def __init__(self, *labels: list[int]) -> None:
        self.labels, self.counts = labels, [len(task) for task in labels]

    def batches(self, task, batch_size):
        y = torch.tensor(self.labels[task])
        for part in y.split(batch_size):
            yield torch.zeros(len(part), 1), part, torch.full([len(part)], task)


def test_numbers_are_scored_by_r_squared():
    data = Given([[1.0], [3.0]], [[2.0], [2.0]])
    found = evaluate(Constant(2.0), data)
    assert found.losses == (1.0, 0.0)
    assert found.accuracies == (0.0, 1.0)  # the variance within tasks is 2 / (1 + 1)
    assert found.shown(found.accuracy) == "R² 0.500"
    assert Evaluation.from_dict(found.to_dict()) == found


def test_tasks_of_one_number_do_not_change_the_variance():
    """They have errors, but say nothing of how numbers differ within a task."""
    labels = [[1.0], [3.0]], [[2.0]], [[2.0]]
    found = evaluate(Constant(3.0), Given(*labels))
    assert found.accuracies == (0.0, 0.5, 0.5)  # the variance is 2 / (1 + 0 + 0)
    given = evaluate(Constant(3.0), Given(*labels[1:]), variance=4.0)
    assert (given.score, given.accuracies) == ("R²", (0.75, 0.75))
    with pytest.raises(ValueError, match=r"`variance` must be .* got 0"):
        evaluate(Constant(3.0), Given(*labels), variance=0)


@pytest.mark.parametrize("labels", [[[[2.0]], [[5.0]]], [[[2.0], [2.0]]]])
def test_numbers_that_do_not_differ_within_tasks_are_scored_by_the_loss(labels):
    """There is no R² then, and 0 would say that nothing was learned."""
    near, far = (evaluate(Constant(value), Given(*labels)) for value in (3.0, -9.0))
    assert near.score == "metric"
    assert near.accuracy == -near.loss
    assert near.is_better_than(far)
    assert not far.is_better_than(near)


def test_the_loss_decides_among_evaluations_of_numbers():
    def found(loss, r_squared):
        return Evaluation(("a",), (r_squared,), (loss,), "R²")

    near, far = found(1.0, 0.5), found(2.0, 0.9)  # compared with other variances
    assert near.is_better_than(far)
    assert not far.is_better_than(near)


def test_accuracy_and_loss_of_each_task():
    model = Constant(math.log(3.0), 0.0)
    found = evaluate(model, Given([0, 0, 0, 1], [1, 1]), names=["a", "b"], batch_size=3)
    assert found.tasks == ("a", "b")
    assert found.accuracies == (0.75, 0.0)
    quarter, rest = -math.log(0.25), -math.log(0.75)
    assert found.losses == pytest.approx(((3 * rest + quarter) / 4, quarter))
    entropy = 0.75 * rest + 0.25 * quarter  # of predictions of 3 to 1, whatever the class
    assert found.entropies == pytest.approx((entropy, entropy))
    assert found.entropy == pytest.approx(entropy)
    assert found.accuracy == 0.375
    assert found.loss == pytest.approx(sum(found.losses) / 2)
    assert (found.worst_task, found.worst_accuracy) == ("b", 0.0)
    assert model.tasks == [0, 0, 1]


def test_outputs_beyond_a_tasks_classes_do_not_count():
    model = Constant(0.0, -1.0, 9.0)
    found = evaluate(model, Given([0], [2]), n_classes=[2, 3])
    assert found.accuracies == (1.0, 1.0)
    assert found.losses[0] == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert evaluate(model, Given([0], [2])).accuracies == (0.0, 1.0)
    assert evaluate(Constant(0.0, 0.0, 9.0), Given([0]), n_classes=[2]).entropy == pytest.approx(
        math.log(2)
    )


def test_results_from_before_entropy_was_measured():
    found = evaluate(Constant(1.0, 0.0), Given([0], [1]))
    assert Evaluation.from_dict(found.to_dict()) == found
    older = {k: v for k, v in found.to_dict().items() if not k.startswith("entrop")}
    assert Evaluation.from_dict(older).to_dict() == older


def test_the_model_is_in_evaluation_mode_and_then_as_it_was():
    model = Model(dropout=0.9)
    model.train()
    model.shared.eval()
    first, second = (evaluate(model, Source(), n_classes=N_CLASSES) for _ in range(2))
    assert first == second
    assert model.training
    assert model.dropout.training
    assert not model.shared.training
    assert model.shared.weight.grad is None


def test_batch_size_does_not_matter():
    results = [evaluate(Model(), Source(), batch_size=n) for n in (1, 7, 1000)]
    assert results[0].accuracies == results[1].accuracies == results[2].accuracies
    assert results[0].losses == pytest.approx(results[2].losses, rel=1e-5)


def test_bf16_stays_close():
    plain, low = (evaluate(Model(), Source(), precision=p) for p in ("fp32", "bf16"))
    assert plain.losses != low.losses
    assert plain.losses == pytest.approx(low.losses, rel=0.02)


def test_json_round_trip():
    found = evaluate(Model(), Source(), names=NAMES)
    assert Evaluation.from_dict(found.to_dict()) == found
    assert found.to_dict()["accuracies"]["bags"] == found.accuracies[1]


def test_a_task_without_images_is_named():
    with pytest.raises(ValueError, match="task 'b' has no samples to evaluate on"):
        evaluate(Constant(0.0, 0.0), Given([0], []), names=["a", "b"])


@pytest.mark.parametrize("argument", ["names", "n_classes"])
def test_one_entry_a_task(argument):
    given = {"names": ["a"], "n_classes": [2]}[argument]
    with pytest.raises(ValueError, match=f"`{argument}` must have one entry .* 2 tasks, got 1"):
        evaluate(Constant(0.0, 0.0), Given([0], [0]), **{argument: given})


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        evaluate(Model(), Source(), batch_size=0)
    with pytest.raises(ValueError, match="'fp32', 'bf16'; got 'fp16'"):
        evaluate(Model(), Source(), precision="fp16")
    with pytest.raises(ValueError, match="`n_classes` must be at least 1, got 0"):
        evaluate(Model(), Source(), n_classes=[2, 0, 2])


def test_names_are_unique():
    with pytest.raises(ValueError, match=r"`names` must not repeat .* got 'a' twice"):
        evaluate(Constant(0.0, 0.0), Given([0], [0]), names=["a", "a"])
