from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding, TaskFeatures


@pytest.fixture
def embedding() -> TaskEmbedding:
    return TaskEmbedding(["shoes", "bags", "hats"], dim=4)


def test_looks_up_one_row_a_task(embedding):
    rows = embedding(torch.tensor([2, 0, 2], dtype=torch.int32))
    assert torch.equal(rows, embedding.weight[[2, 0, 2]])
    assert embedding(torch.tensor([], dtype=torch.long)).shape == (0, 4)


def test_byte_ids_are_numbers_and_no_mask(embedding):
    rows = embedding(torch.tensor([1, 0, 1], dtype=torch.uint8))
    assert torch.equal(rows, embedding.weight[[1, 0, 1]])


@pytest.mark.parametrize("task", [-1, 3])
def test_never_counts_from_the_end(embedding, task):
    with pytest.raises(IndexError):
        embedding(torch.tensor([0, task]))
    with pytest.raises(IndexError, match=rf"`task` must be in \[0, 3\), got {task}"):
        embedding.index(task)


@pytest.mark.parametrize(
    "task", ["bags", 1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor(1).short()]
)
def test_a_task_goes_by_name_or_by_any_kind_of_integer(embedding, task):
    assert embedding.index(task) == 1


def test_an_unknown_name_lists_the_known_ones(embedding):
    with pytest.raises(KeyError, match=r"unknown `task` 'coats'; .* 'shoes', 'bags', 'hats'"):
        embedding.index("coats")


@pytest.mark.parametrize("task", [1.0, True, [0, 1], None, np.array([0, 1]), np.float32(1)])
def test_what_is_neither_name_nor_integer_is_refused(embedding, task):
    with pytest.raises(TypeError, match=r"`task` must be a name or an integer, got .*\[batch\]"):
        embedding.index(task)


def test_numbered_tasks_are_named_by_their_number():
    embedding = TaskEmbedding(3, dim=4)
    assert embedding.names == ["0", "1", "2"]
    assert embedding.index("2") == 2


def test_starts_standard_normal_from_its_seed_alone():
    weight = TaskEmbedding(500, 64, seed=3).weight.detach()
    assert weight.mean() == pytest.approx(0, abs=0.02)
    assert weight.std() == pytest.approx(1, rel=0.02)
    torch.manual_seed(5)
    assert torch.equal(weight, TaskEmbedding(500, 64, seed=3).weight)
    assert not torch.equal(weight, TaskEmbedding(500, 64, seed=4).weight)


def test_adding_a_task_keeps_the_others_bit_for_bit(embedding):
    before = embedding.weight.detach().clone()
    embedding.add("coats")
    embedding.add("socks", init="bags")
    embedding.add("gloves", init=torch.arange(4))
    assert embedding.names == ["shoes", "bags", "hats", "coats", "socks", "gloves"]
    assert torch.equal(embedding.weight[:3], before)
    assert torch.allclose(embedding.weight[3], before.mean(0))
    assert torch.equal(embedding.weight[4], before[1])
    assert torch.equal(embedding.weight[5], torch.arange(4.0))
    assert embedding.weight.is_leaf
    assert embedding.weight.requires_grad


def test_adding_to_a_frozen_table_leaves_it_frozen(embedding):
    embedding.requires_grad_(False)
    embedding.add("coats")
    assert not embedding.weight.requires_grad


@pytest.mark.parametrize("similarity", [0, 0.5, 0.95])
def test_tasks_start_as_similar_as_is_said(similarity):
    weight = TaskEmbedding(60, 500, similarity=similarity, seed=1).weight.detach()
    cosines = torch.corrcoef(weight)[*torch.triu_indices(60, 60, 1)]
    assert cosines.mean() == pytest.approx(similarity, abs=0.05)
    assert weight.std() == pytest.approx(1, abs=0.1)


def test_unrelated_tasks_are_the_same_whatever_else_there_is():
    assert torch.equal(TaskEmbedding(3, 8).weight, TaskEmbedding(3, 8, similarity=0.0).weight)
    with pytest.raises(ValueError, match=r"`similarity` must be less than 1, got 1"):
        TaskEmbedding(3, 8, similarity=1)
    with pytest.raises(ValueError, match=r"`similarity` must be at least 0, got -0.1"):
        TaskEmbedding(3, 8, similarity=-0.1)


@pytest.mark.parametrize(
    ("name", "init", "error", "message"),
    [
        ("bags", "mean", ValueError, "`name` must not repeat a task, got 'bags'"),
        ("", "mean", TypeError, "a name in `name` must be a non-empty string, got ''"),
        (3, "mean", TypeError, "a name in `name` must be a non-empty string, got 3"),
        ("coats", "median", KeyError, "unknown `task` 'median'"),
        ("coats", torch.zeros(5), ValueError, r"`init` must have shape \[4\], got \[5\]"),
    ],
)
def test_a_refused_task_changes_nothing(embedding, name, init, error, message):
    weight = embedding.weight
    with pytest.raises(error, match=message):
        embedding.add(name, init)
    assert embedding.weight is weight
    assert embedding.names == ["shoes", "bags", "hats"]


@pytest.mark.parametrize(
    ("tasks", "dim", "error", "message"),
    [
        (0, 4, ValueError, "`tasks` must be at least 1, got 0"),
        ([], 4, ValueError, "`tasks` must name at least one task, got none"),
        (["a", "b", "a"], 4, ValueError, "`tasks` must not repeat a task, got 'a'"),
        (["a", ""], 4, TypeError, "a name in `tasks` must be a non-empty string, got ''"),
        ([1, 2], 4, TypeError, "a name in `tasks` must be a non-empty string, got 1"),
        ("shoes", 4, TypeError, "`tasks` must be a number or a list of names, got 'shoes'"),
        (2.5, 4, TypeError, "`tasks` must be a number or a list of names, got 2.5"),
        (True, 4, TypeError, "`tasks` must be an integer, got True"),
        (2, 0, ValueError, "`dim` must be at least 2, got 0"),
        (2, 1, ValueError, "`dim` must be at least 2, got 1"),
    ],
)
def test_refuses_tasks_and_sizes_out_of_range(tasks, dim, error, message):
    with pytest.raises(error, match=message):
        TaskEmbedding(tasks, dim)


def test_a_removed_task_is_gone_and_the_others_keep_their_embeddings():
    table = TaskEmbedding(["a", "b", "c"], dim=4)
    before = table.weight.detach().clone()
    table.remove("b")
    assert table.names == ["a", "c"]
    assert torch.equal(table.weight, before[[0, 2]])
    with pytest.raises(KeyError, match="unknown `task` 'b'; the tasks are: 'a', 'c'"):
        table.remove("b")
    table.remove("a")
    with pytest.raises(ValueError, match="'c' is the only task"):
        table.remove("c")


def test_a_renamed_task_keeps_its_number():
    table = TaskEmbedding(["a", "b"], dim=4)
    table.rename("a", "z")
    assert table.index("z") == 0
    with pytest.raises(ValueError, match="`new_name` must not repeat a task, got 'b'"):
        table.rename("z", "b")
    with pytest.raises(KeyError, match="unknown `task` 'a'"):
        table.rename("a", "y")


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)


def test_many_tasks_are_looked_up_and_not_searched():
    n, Name.compared = 5000, 0
    names = [Name(i) for i in range(n)]
    for table in (TaskEmbedding(names, 2), TaskFeatures(dict.fromkeys(names, torch.zeros(1)), 2)):
        for i in range(n):
            assert table.index(Name(i)) == i
            table.rename(names[i], Name(f"new {i}"))
        assert table.index(Name("new 7")) == 7
    assert Name.compared < 20 * n


def test_numbers_follow_when_tasks_are_added_renamed_and_removed(embedding):
    embedding.add("caps")
    embedding.rename("bags", "sacks")
    embedding.remove("shoes")
    assert embedding.names == ["sacks", "hats", "caps"]
    assert [embedding.index(name) for name in embedding.names] == [0, 1, 2]
    for gone in ("bags", "shoes"):
        with pytest.raises(KeyError, match="unknown `task`"):
            embedding.index(gone)
    embedding.add("shoes")
    assert embedding.index("shoes") == 3
    other = copy.deepcopy(embedding)
    other.rename("hats", "bags")
    assert (other.index("bags"), embedding.index("hats")) == (1, 1)


def test_tables_too_large_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"`tasks` must be at most 1000000, got 1000000000"):
        TaskEmbedding(10**9)
    with pytest.raises(ValueError, match=r"`dim` must be at most 1048576, got 10000000"):
        TaskEmbedding(2, 10**7)
    with pytest.raises(ValueError, match=r"`tasks` of `dim` 10,000 would take 10,000,000,000"):
        TaskEmbedding(10**6, 10**4)


def test_long_lists_of_tasks_are_cut_in_errors():
    table = TaskEmbedding(1000, 2)
    with pytest.raises(KeyError, match=r"'9' and 990 more"):
        table.index("x")
    with pytest.raises(TypeError, match=r"'9' and 990 more"):
        table.row(None)


@pytest.mark.parametrize("by", ["forward", "hook"])
def test_one_task_and_a_batch_of_it_have_one_embedding(by):
    class Squashed(TaskEmbedding):
        def forward(self, task):
            return super().forward(task).tanh() + torch.linspace(-1, 1, self.dim)

    tasks = Squashed(2, 8) if by == "forward" else TaskEmbedding(2, 8)
    if by == "hook":
        tasks.register_forward_hook(lambda _, __, z: z.tanh() + torch.linspace(-1, 1, 8))
    hnet = HyperNetwork(nn.Linear(3, 2), Sparse(), tasks)
    x = torch.randn(2, 3)
    torch.testing.assert_close(hnet(x, task=1), hnet(x, task=[1, 1]))
