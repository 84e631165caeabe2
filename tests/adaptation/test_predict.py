from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.small_tasks import normed, samples
from sparsehyper import (
    average_predictions,
    fit_embedding,
)


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
