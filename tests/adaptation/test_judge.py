from __future__ import annotations

import pytest
import torch

from sparsehyper.adaptation.judge import (
    fitted_temperature,
    fold_numbers,
    stacking_weights,
    wilson,
)


def test_folds_share_every_class_evenly():
    y = torch.tensor([0] * 10 + [1] * 7 + [2] * 3)[torch.randperm(20)]
    numbers = fold_numbers(y, torch.arange(20), 5)
    assert numbers.bincount().tolist() == [4] * 5
    assert numbers[y == 0].bincount(minlength=5).tolist() == [2] * 5
    assert numbers[y == 1].bincount(minlength=5).max() == 2
    assert numbers[y == 2].bincount(minlength=5).max() == 1


def test_equal_samples_are_in_one_fold():
    first_equal = torch.arange(20).repeat(3)
    y = (torch.arange(20) % 2).repeat(3)
    numbers = fold_numbers(y, first_equal, 5)
    assert torch.equal(numbers, numbers[:20].repeat(3))
    for label in (0, 1):
        assert numbers[y == label].bincount().tolist() == [6] * 5


def test_the_temperature_undoes_a_scale_as_far_as_there_are_samples():
    logits = torch.randn(5000, 4)
    y = torch.distributions.Categorical(logits=logits).sample()
    assert fitted_temperature(5 * logits, y) == pytest.approx(5, rel=0.1)
    assert fitted_temperature(logits, y) == pytest.approx(1, rel=0.1)
    assert fitted_temperature(5 * logits[:0], y[:0], 3.0) == pytest.approx(3, rel=0.05)


def test_weights_go_where_labels_are_likely():
    good, bad = torch.full((200,), -0.1), torch.full((200,), -2.0)
    weights = stacking_weights(torch.stack([good, bad]), torch.ones(2))
    assert weights[0] > 0.95
    assert weights.sum() == pytest.approx(1)


def test_ways_that_know_different_things_share_the_weight():
    first = torch.tensor([-0.1, -4.0]).repeat(50)
    weights = stacking_weights(torch.stack([first, first.flip(0)]), torch.ones(2))
    torch.testing.assert_close(weights, torch.full((2,), 0.5))


def test_without_samples_weights_are_those_of_the_prior():
    weights = stacking_weights(torch.zeros(2, 0), torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]))


def test_the_interval_is_within_0_and_1_and_shrinks():
    assert wilson(0, 3)[0] == 0
    assert wilson(3, 3)[1] == pytest.approx(1)
    narrow, wide = wilson(900, 1000), wilson(9, 10)
    assert narrow[1] - narrow[0] < 0.04 < wide[1] - wide[0]
    assert narrow[0] < 0.9 < narrow[1]
