from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper import HyperNetwork, Ridge, Sparse, TaskEmbedding
from sparsehyper.analysis import line, plane

X = torch.linspace(-1, 1, 20).view(4, 5)


@pytest.fixture
def hnet() -> HyperNetwork:
    target = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    tasks = TaskEmbedding(["shoes", "bags", "hats"], 8)
    hnet = HyperNetwork(target, Sparse(), tasks, noise=0.5).train()
    for table in (hnet.target.module[1].running_mean, hnet.target.module[1].running_var):
        table.uniform_(0.5, 2)  # different batch-norm statistics for each task
    return hnet


def total(model) -> torch.Tensor:
    return model(X).sum()


def at(hnet, z) -> float:
    """Sum of the target's outputs at an embedding, computed by the hypernetwork itself."""
    hnet.eval()
    with torch.no_grad():
        value = float(hnet(X, task=z.float()).sum())
    hnet.train()
    return value


def test_a_line_runs_from_one_normalised_embedding_to_the_other(hnet):
    found = line(hnet, total, "shoes", 2, points=5)
    a, b = (F.layer_norm(hnet.embedding(task).detach(), [8]) for task in (0, 2))
    assert found.positions == (0.0, 0.25, 0.5, 0.75, 1.0)
    expected = [at(hnet, a + step * (b - a)) for step in found.positions]
    assert found.values == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(set(found.values)) == 5
    json.dumps(dataclasses.asdict(found))


def test_a_line_normalises_embeddings_before_it_mixes_them(hnet):
    before = line(hnet, total, 0, 1, points=3)
    hnet.conditioner.weight.data[1] *= 100
    assert line(hnet, total, 0, 1, points=3).values == pytest.approx(before.values, rel=1e-3)


@torch.no_grad()
def test_models_on_the_way_end_in_the_head_that_is_named():
    hnet = HyperNetwork(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)),
        *(Sparse(), TaskEmbedding(["shoes", "bags", "hats"], 8)),
        head=Ridge(),
    )
    for task in hnet.task_names:
        hnet.solve_head(task, (torch.randn(30, 5), torch.arange(30) % 2))

    def first(model) -> float:
        return float(model(X)[:, 0].sum())

    shoes, bags = (first(hnet.materialize(task)) for task in ("shoes", "bags"))
    found = line(hnet, first, "shoes", "bags", head="bags")
    assert found.values[-1] == pytest.approx(bags, abs=1e-3)
    assert found.values[0] != pytest.approx(shoes, abs=1e-3)
    over = plane(hnet, first, *hnet.task_names, points=2, margin=0, head="shoes")
    assert over.values[0][0] == pytest.approx(shoes, abs=1e-3)
    for call in (lambda: line(hnet, total, 0, 1), lambda: plane(hnet, total, 0, 1, 2)):
        with pytest.raises(ValueError, match="`head` is missing; it must be the task whose head"):
            call()


def test_a_plane_holds_the_three_tasks(hnet):
    found = plane(hnet, total, "shoes", "bags", "hats", points=4, margin=0.5)
    a, b, c = (F.layer_norm(hnet.embedding(task).detach(), [8]) for task in range(3))
    (ax, ay), (bx, by), (cx, cy) = found.corners
    assert (ax, ay, by) == (0, 0, 0)
    assert bx == pytest.approx(float((b - a).norm()), rel=1e-5)
    assert (cx**2 + cy**2) ** 0.5 == pytest.approx(float((c - a).norm()), rel=1e-5)
    assert ((cx - bx) ** 2 + cy**2) ** 0.5 == pytest.approx(float((c - b).norm()), rel=1e-5)
    assert found.y[0] == pytest.approx(-0.5 * cy)
    assert found.y[-1] == pytest.approx(1.5 * cy)
    width = max(bx, cx) - min(0, cx)
    assert found.x[-1] - found.x[0] == pytest.approx(2 * width)
    # Coordinates (x, y) are a + s (b - a) + t (c - a).
    for row, y in zip(found.values, found.y, strict=True):
        t = y / cy
        points = [a + (x - t * cx) / bx * (b - a) + t * (c - a) for x in found.x]
        assert row == pytest.approx([at(hnet, z) for z in points], rel=1e-3, abs=1e-3)
    json.dumps(dataclasses.asdict(found))


def test_models_are_ordinary_and_evaluated_without_gradients(hnet):
    def look(model) -> float:
        assert type(model) is nn.Sequential
        assert not model.training
        assert not model(X).requires_grad
        return 0.0

    before = {name: value.clone() for name, value in hnet.state_dict().items()}
    line(hnet, look, 0, 1)
    plane(hnet, look, 0, 1, 2, points=2)
    assert hnet.training
    assert all(torch.equal(value, before[name]) for name, value in hnet.state_dict().items())


def test_bad_arguments_are_refused(hnet):
    for function, tasks in ((line, (0, 1)), (plane, (0, 1, 2))):
        with pytest.raises(ValueError, match="`points` must be at least 2, got 1"):
            function(hnet, total, *tasks, points=1)
        with pytest.raises(TypeError, match="`evaluate` must be a function of a model, got 3"):
            function(hnet, 3, *tasks)
        with pytest.raises(IndexError, match=r"`task` must be in \[0, 3\), got 3"):
            function(hnet, total, *tasks[1:], 3)
    with pytest.raises(ValueError, match="`margin` must be at least 0, got -1"):
        plane(hnet, total, 0, 1, 2, margin=-1)
    for same in ((0, 0, 1), (0, 1, 0), (0, 1, 1)):
        with pytest.raises(ValueError, match="three different embeddings, got two the same"):
            plane(hnet, total, *same)
