"""The output regulariser: what it holds, what it costs, and what it refuses."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.small_tasks import normed, plain, samples
from sparsehyper import (
    Chunked,
    HyperNetwork,
    InputAndTask,
    InputEncoder,
    OutputRegulariser,
    Ridge,
    Sparse,
    SupportSet,
    TaskEmbedding,
    TaskExamples,
    TaskFeatures,
)
from sparsehyper._util.kernels import has_address

NAMES = ["a", "b", "c"]


def made(target: nn.Module | None = None, **settings) -> HyperNetwork:
    conditioner = settings.pop("conditioner", None) or TaskEmbedding(NAMES, dim=16)
    return HyperNetwork(target or plain(), Sparse(), conditioner, **settings)


def learn(hnet: HyperNetwork, regulariser: OutputRegulariser, task: str, seed: int) -> None:
    x, y = samples(seed)
    optimizer = torch.optim.Adam(hnet.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (F.cross_entropy(hnet(x, task=task), y) + regulariser()).backward()
        optimizer.step()


def disturb(hnet: HyperNetwork) -> None:
    with torch.no_grad():
        for parameter in hnet.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def theta(hnet: HyperNetwork, task: str) -> torch.Tensor:
    return hnet.theta(hnet.embedding(task)[None])[0].detach()


@pytest.mark.parametrize(
    ("generator", "tasks_per_step"), [(Sparse(), None), (Chunked(4), 1)], ids=["sparse", "chunked"]
)
def test_earlier_tasks_stay_as_learned_while_others_are_learned(generator, tasks_per_step):
    right = {}
    for beta in (0.0, 0.1):
        torch.manual_seed(0)
        hnet = HyperNetwork(plain(), generator, TaskEmbedding(1, dim=16))
        regulariser = OutputRegulariser(hnet, beta, tasks_per_step=tasks_per_step)
        for seed in range(3):
            if seed:
                hnet.add_task(str(seed), torch.randn(16))
            learn(hnet, regulariser, str(seed), seed)
            regulariser.hold(seed)
        hnet.eval()
        tasks = [samples(seed) for seed in range(3)]
        right[beta] = [
            (hnet(x, task=seed).argmax(1) == y).float().mean() for seed, (x, y) in enumerate(tasks)
        ]
    assert right[0.0][0] < 0.75
    assert right[0.1][0] > 0.9
    assert min(right[0.0][2], right[0.1][2]) > 0.9


def test_the_penalty_is_the_mean_square_distance_from_the_models_held():
    hnet = made()
    regulariser = OutputRegulariser(hnet, beta=0.3)
    assert regulariser() == 0
    regulariser.hold("a", 2)
    assert regulariser.tasks == ["a", "c"]
    before = [theta(hnet, task) for task in ("a", "c")]
    assert regulariser() == 0
    disturb(hnet)
    now = [theta(hnet, task) for task in ("a", "c")]
    squares = [(new - old).square().sum() for new, old in zip(now, before, strict=True)]
    torch.testing.assert_close(regulariser().detach(), 0.3 * torch.stack(squares).mean())
    regulariser.hold()  # from now on as they are now
    assert regulariser() == 0


def test_a_step_may_look_at_some_tasks_only():
    hnet = made()
    every, one = OutputRegulariser(hnet), OutputRegulariser(hnet, tasks_per_step=1)
    for regulariser in (every, one):
        regulariser.hold(*NAMES)
    disturb(hnet)
    drawn = torch.stack([one().detach() for _ in range(40)]).unique()
    assert len(drawn) == 3
    torch.testing.assert_close(drawn.mean(), every().detach())


def test_memory_does_not_grow_with_models_and_what_is_frozen_is_not_copied():
    frozen = nn.Linear(600, 300).requires_grad_(False)
    target = nn.Sequential(frozen, nn.BatchNorm1d(300), nn.Linear(300, 3))
    sizes = []
    for count in (1, 3):
        hnet = made(target)
        regulariser = OutputRegulariser(hnet)
        before = _memory()
        regulariser.hold(*NAMES[:count])
        sizes.append(sum(size for at, size in _memory().items() if at not in before))
    assert 0 < sizes[0] == sizes[1] < frozen.weight.nbytes / 4


def test_a_task_can_be_let_go_and_one_that_is_missing_is_told():
    hnet = made()
    regulariser = OutputRegulariser(hnet)
    regulariser.hold("a", "b")
    hnet.remove_task("a")
    with pytest.raises(KeyError, match="unknown `task` 'a'"):
        regulariser()
    regulariser.tasks.remove("a")
    assert regulariser() == 0
    with pytest.raises(KeyError, match="'z'"):
        regulariser.hold("z")


def test_batch_norm_statistics_stay_with_their_task():
    hnet = made(normed())
    regulariser = OutputRegulariser(hnet)
    learn(hnet, regulariser, "a", seed=0)
    regulariser.hold("a")
    before = hnet.materialize("a")[1].running_mean
    learn(hnet, regulariser, "b", seed=1)
    assert torch.equal(hnet.materialize("a")[1].running_mean, before)
    assert not torch.equal(hnet.materialize("b")[1].running_mean, before)


@pytest.mark.parametrize(
    "settings",
    [
        {"head": Ridge()},
        {"base": "pretrained"},
        {"conditioner": TaskFeatures({name: torch.randn(3) for name in NAMES}, dim=16)},
        {"target": normed(), "norm_stats": "batch"},
        {"generate": "3.*", "others": "frozen"},
    ],
    ids=["head", "base", "features", "batch", "part"],
)
def test_other_hypernetworks_can_be_held(settings):
    hnet = made(**settings)
    regulariser = OutputRegulariser(hnet)
    regulariser.hold("a")
    disturb(hnet)
    regulariser().backward()
    assert regulariser() > 0
    assert all(p.grad is not None for p in hnet.generator.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generate": "3.*"}, "share the parameter '0.weight'.*`others=\"frozen\"`"),
        ({"target": normed(), "norm_stats": "shared"}, "share the statistics '1.running_mean'"),
    ],
)
def test_what_tasks_share_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OutputRegulariser(made(**settings))


@pytest.mark.parametrize("kind", [InputEncoder, InputAndTask, TaskExamples])
def test_models_of_something_else_than_tasks_are_refused(kind):
    conditioner = InputEncoder(nn.Linear(6, 16), dim=16)
    if kind is InputAndTask:
        conditioner = InputAndTask(conditioner, TaskEmbedding(NAMES, dim=16))
    if kind is TaskExamples:
        support = SupportSet(nn.Linear(6, 4), features=4, n_classes=2, dim=16)
        conditioner = TaskExamples(support, NAMES)
    hnet = made(conditioner=conditioner)
    with pytest.raises(TypeError, match=f"conditioner is a {kind.__name__}"):
        OutputRegulariser(hnet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.5}, "`beta` must be at least 0, got -0.5"),
        ({"tasks_per_step": 0}, "`tasks_per_step` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        OutputRegulariser(made(), **settings)
    with pytest.raises(TypeError, match="`hnet` must be a HyperNetwork"):
        OutputRegulariser(plain())


def _memory() -> dict[int, int]:
    """Address and bytes of the memory of every tensor."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if has_address(tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
