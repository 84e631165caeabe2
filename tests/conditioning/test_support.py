from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper import Dense, HyperNetwork, SupportSet
from sparsehyper._util.files import CheckpointError

X, Y = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 6).requires_grad_(False)


def by_classes(**settings) -> SupportSet:
    return SupportSet(encoder(), 6, 4, 8, pool="classes", hidden=16, **settings)


def z(conditioner: SupportSet, x, y):
    return conditioner.embed((x, y), (), {})[0]


def test_the_equation_of_pooling_by_classes():
    conditioner = by_classes()
    each = conditioner.each(conditioner.encoder(X))
    seen = [
        conditioner.of_class(torch.cat([each[c == Y].mean(0), F.one_hot(torch.tensor(c), 4)]))
        for c in range(3)
    ]
    expected = conditioner.whole(torch.stack(seen).mean(0))
    torch.testing.assert_close(z(conditioner, X, Y), expected)


def test_pooled_by_classes_neither_order_nor_the_size_of_a_class_matters():
    conditioner = by_classes()
    order = torch.randperm(9)
    torch.testing.assert_close(z(conditioner, X[order], Y[order]), z(conditioner, X, Y))
    more = torch.cat([X, X[Y == 1]]), torch.cat([Y, Y[Y == 1]])
    torch.testing.assert_close(z(conditioner, *more), z(conditioner, X, Y))
    pooled = SupportSet(encoder(), 6, 4, 8)
    assert not torch.allclose(z(pooled, *more), z(pooled, X, Y))
    assert not torch.allclose(z(conditioner, X, (Y + 1) % 3), z(conditioner, X, Y))


def test_a_frozen_encoder_is_not_trained_and_not_in_the_file(tmp_path):
    hnet = HyperNetwork(nn.Linear(5, 3), Dense(), by_classes())
    F.cross_entropy(hnet(X, task=(X, Y)), Y).backward()
    without = {name for name, p in hnet.named_parameters() if p.grad is None}
    assert without == {"conditioner.encoder.weight", "conditioner.encoder.bias"}
    hnet.save(tmp_path / "model")
    loaded = HyperNetwork.load(tmp_path / "model", nn.Linear(5, 3), by_classes())
    assert torch.equal(loaded(X, task=(X, Y)), hnet(X, task=(X, Y)))
    with pytest.raises(ValueError, match=r"`conditioner` does not fit: .* 'pool': 'classes'"):
        HyperNetwork.load(
            tmp_path / "model", nn.Linear(5, 3), SupportSet(encoder(), 6, 4, 8, hidden=16)
        )
    other = by_classes()
    other.encoder.bias.add_(1)
    with pytest.raises(CheckpointError, match=r"1 of 2 .* 'conditioner\.encoder\.bias'"):
        HyperNetwork.load(tmp_path / "model", nn.Linear(5, 3), other)


def test_a_frozen_encoder_stays_in_evaluation_mode():
    frozen = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    conditioner = SupportSet(frozen.requires_grad_(False), 6, 4, 8).train()
    assert torch.equal(z(conditioner, X, Y), z(conditioner, X, Y))
    assert frozen[1].num_batches_tracked == 0
    assert SupportSet(nn.Dropout(0.5).requires_grad_(True), 5, 4, 8).train().each.training
    trained = SupportSet(nn.Linear(5, 6), 6, 4, 8).train()
    assert trained.encoder.training


def test_another_pool_is_refused():
    with pytest.raises(ValueError, match=r"`pool` must be one of 'examples', 'classes'; got 'max'"):
        SupportSet(encoder(), 6, 4, pool="max")
