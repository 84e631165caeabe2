from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsehyper import HyperNetwork, InputEncoder, Sparse, TaskEmbedding
from sparsehyper.analysis import distances, generated_weights, project, task_embeddings, vectors
from sparsehyper.analysis import gram as gram_module


@pytest.fixture
def hnet() -> HyperNetwork:
    return HyperNetwork(
        nn.Linear(9, 4), Sparse(), TaskEmbedding(["shoes", "bags", "hats"], 8), noise=0.5
    ).train()


def test_embeddings_and_weights_are_those_the_target_gets(hnet, monkeypatch):
    monkeypatch.setattr(gram_module, "_PIECE_BYTES", 4 * 40 * 2)  # two rows at a time
    z, theta = task_embeddings(hnet), generated_weights(hnet)
    assert theta.shape == (3, 40)
    hnet.eval()  # without noise
    for i, task in enumerate(hnet.task_names):
        assert torch.allclose(z[i], F.layer_norm(hnet.embedding(task), [8]))
        flat = torch.cat([tensor.flatten() for tensor in hnet.generate(task).values()])
        assert torch.allclose(theta[i], flat)
    assert not theta.requires_grad


def test_tasks_may_be_chosen(hnet):
    z = task_embeddings(hnet)
    free = torch.randn(8)
    chosen = task_embeddings(hnet, ["hats", 0, free])
    assert torch.allclose(chosen, torch.stack([z[2], z[0], F.layer_norm(free, [8])]))
    assert torch.equal(generated_weights(hnet, ["bags"])[0], generated_weights(hnet)[1])


def test_bad_tasks_are_refused(hnet):
    with pytest.raises(ValueError, match="`tasks` must hold at least one task, got none"):
        task_embeddings(hnet, [])
    with pytest.raises(TypeError, match="`tasks` must be a list of tasks, got 'hats'"):
        task_embeddings(hnet, "hats")
    with pytest.raises(TypeError, match="`tasks` must be a list of tasks, got 3"):
        task_embeddings(hnet, 3)
    with pytest.raises(KeyError, match="unknown `task` 'coats'"):
        generated_weights(hnet, ["coats"])


def test_a_hypernetwork_without_tasks_has_none_to_show():
    encoder = InputEncoder(nn.Linear(9, 8), dim=8)
    hnet = HyperNetwork(nn.Linear(9, 4), Sparse(), encoder)
    with pytest.raises(ValueError, match="at least one task, got none"):
        task_embeddings(hnet)
    assert task_embeddings(hnet, [torch.randn(8)]).shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_distances_equal_those_of_all_pairs(dtype):
    vectors = torch.randn(6, 50_000).to(dtype)  # long enough to be converted in pieces
    exact = vectors.double()
    assert torch.allclose(distances(vectors, "euclidean"), torch.cdist(exact, exact))
    cosine = F.cosine_similarity(exact[:, None], exact[None], dim=2)
    assert torch.allclose(distances(vectors), 1 - cosine, atol=1e-12)


def test_what_vectors_have_in_common_does_not_drown_their_distance():
    vectors = 1e6 + torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64) * 1e-3
    assert float(distances(vectors, "euclidean")[0, 1]) == pytest.approx(5e-3, rel=1e-6)


def test_the_map_is_that_of_a_singular_value_decomposition():
    vectors = torch.randn(7, 50_000) * torch.linspace(1, 3, 50_000) + 10
    u, s, _ = torch.linalg.svd((vectors - vectors.mean(0)).double(), full_matrices=False)
    found = project(vectors)
    assert torch.allclose(found.points.abs(), (u * s)[:, :2].abs(), atol=1e-8)
    shares = s.square() / s.square().sum()
    assert found.explained == pytest.approx(shares[:2].tolist())
    farthest = found.points.abs().argmax(0)
    assert (found.points[farthest, [0, 1]] > 0).all()
    assert torch.allclose(project(vectors).points, found.points)
    mirrored = project(-vectors)
    assert torch.allclose(mirrored.points, found.points)


@pytest.mark.parametrize("vectors", [torch.ones(1, 5), torch.ones(3, 5)])
def test_vectors_that_do_not_differ_lie_on_one_point(vectors):
    found = project(vectors)
    assert found.points.shape == (len(vectors), 2)
    assert not found.points.any()
    assert found.explained == (0.0, 0.0)


def test_bad_vectors_are_refused(hnet):
    for function in (distances, project):
        with pytest.raises(TypeError, match=r"`vectors` .* got a HyperNetwork; .*task_embeddings"):
            function(hnet)
        with pytest.raises(ValueError, match=r"`vectors` must have shape .*, got \[5\]"):
            function(torch.ones(5))
        with pytest.raises(ValueError, match=r"got \[0, 5\]"):
            function(torch.ones(0, 5))
        with pytest.raises(ValueError, match=r"`vectors` must be finite, .* in row 1"):
            function(torch.tensor([[1.0, 2.0], [1.0, torch.inf]]))
    with pytest.raises(ValueError, match=r"`metric` must be one of 'cosine', .*; got 'l1'"):
        distances(torch.ones(2, 2), "l1")
    with pytest.raises(ValueError, match=r"`vectors` must not be zero .* row 1"):
        distances(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_nearest_vectors_are_those_of_all_distances():
    z = torch.randn(1003, 8, generator=torch.Generator().manual_seed(0))  # more than fit at once
    nearest, cosines = vectors.nearest_vectors(z)
    between = distances(z).fill_diagonal_(torch.inf)
    assert torch.equal(nearest, between.argmin(1))
    torch.testing.assert_close(cosines, 1 - between.amin(1))
    with pytest.raises(ValueError, match="`vectors` must be at least 2, got 1"):
        vectors.nearest_vectors(z[:1])
