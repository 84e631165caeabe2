from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.small_tasks import normed, plain, samples
from sparsehyper import (
    HyperNetwork,
    InputEncoder,
    Noise,
    Sparse,
    SupportSet,
    TaskEmbedding,
    identify_task,
    task_profiles,
)

NAMES = ("left", "middle", "right")


def drawn(task: int, seed: int, count: int = 200, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Samples of two classes. The tasks' classes lie along one line, ``apart`` from each other."""
    rng = torch.Generator().manual_seed(1000 * seed + task)
    y = torch.arange(count) % 2
    x = torch.randn(count, 6, generator=rng)
    x[:, 0] += apart * task
    x[:, 1] += 3.0 * y
    return x, y


def known(apart: float = 1.0, module: nn.Module | None = None):
    """A hypernetwork of three tasks, and their profiles."""
    module = plain() if module is None else module
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(NAMES, dim=16))
    tasks = {name: drawn(i, 1, apart=apart) for i, name in enumerate(NAMES)}
    return hnet, task_profiles(hnet, tasks)


def test_tells_the_task_of_inputs():
    hnet, profiles = known()
    for i, name in enumerate(NAMES):
        found = identify_task(hnet, profiles, drawn(i, 2)[0])
        assert found.name == found.likeliest == name
        assert found.probabilities[name] > 0.99
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert list(found.probabilities) == list(NAMES)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_is_as_sure_as_it_is_right(count):
    hnet, profiles = known(apart=0.8)
    right, stated = [], []
    for i, name in enumerate(NAMES):
        for seed in range(2, 102):
            found = identify_task(hnet, profiles, drawn(i, seed, count, apart=0.8)[0])
            right.append(found.likeliest == name)
            stated.append(found.probabilities[found.likeliest])
    assert 0.4 < sum(right) / 300 < 0.99
    assert sum(stated) / 300 == pytest.approx(sum(right) / 300, abs=0.1)


@pytest.mark.parametrize("count", [1, 5, 50])
def test_known_tasks_are_seldom_taken_for_none(count):
    hnet, profiles = known()
    for significance in (0.01, 0.1):
        none = [
            identify_task(hnet, profiles, drawn(i, seed, count)[0], significance=significance).name
            for i in range(3)
            for seed in range(2, 52)
        ].count(None)
        assert none / 150 <= 1.5 * significance


def test_labels_do_not_make_none_of_known_tasks_with_classes_that_overlap():
    def overlapping(task, count, seed):
        rng = torch.Generator().manual_seed(1000 * seed + task)
        centres = 0.3 * torch.randn(10, 6, generator=torch.Generator().manual_seed(100 + task))
        y = torch.arange(count) % 10
        return 2 * task + centres[y] + torch.randn(count, 6, generator=rng), y

    hnet = HyperNetwork(nn.Linear(6, 10), Sparse(), TaskEmbedding(NAMES, dim=16))
    train, validation = (
        {name: overlapping(i, 300, seed) for i, name in enumerate(NAMES)} for seed in (1, 2)
    )
    profiles = task_profiles(hnet, train, validation=validation)
    for significance in (0.01, 0.1):
        none = 0
        for i in range(3):
            x, y = overlapping(i, 1000, 3)
            for rows in torch.arange(1000).split(20):
                found = identify_task(hnet, profiles, x[rows], y[rows], significance=significance)
                none += found.name is None
        assert none / 150 <= 1.5 * significance


def test_samples_of_one_class_are_of_their_task():
    hnet, profiles = known()
    x, y = drawn(1, 2)
    for label in (0, 1):
        assert identify_task(hnet, profiles, x[y == label]).name == "middle"


@pytest.mark.parametrize(
    "change",
    [lambda x: x + 6, lambda x: 3 * x, lambda x: torch.zeros_like(x)],
)
def test_samples_of_no_known_task(change):
    hnet, profiles = known()
    x = change(drawn(1, 2, 50)[0])
    found = identify_task(hnet, profiles, x)
    assert found.name is None
    assert found.p_value < 0.01
    assert found.likeliest in NAMES
    assert identify_task(hnet, profiles, x, significance=0.0).name == found.likeliest


def test_samples_of_several_tasks_are_of_none():
    hnet, profiles = known(apart=3.0)
    x = torch.cat([drawn(0, 2, 60, 3.0)[0], drawn(2, 2, 40, 3.0)[0]])
    found = identify_task(hnet, profiles, x)
    assert found.name is None
    assert found.shares["left"] == pytest.approx(0.6, abs=0.05)
    assert found.shares["right"] == pytest.approx(0.4, abs=0.05)
    assert identify_task(hnet, profiles, x[:60]).name == "left"


def test_labels_tell_tasks_with_the_same_inputs():
    hnet = HyperNetwork(plain(), Sparse(), TaskEmbedding(["as it is", "swapped"], dim=16))
    x, y = drawn(0, 1)
    profiles = task_profiles(hnet, {"as it is": (x, y), "swapped": (x, 1 - y)})
    fresh, labels = drawn(0, 2, 20)
    unsure = identify_task(hnet, profiles, fresh)
    assert unsure.probabilities["swapped"] == pytest.approx(0.5, abs=1e-3)
    assert identify_task(hnet, profiles, fresh, labels).name == "as it is"
    assert identify_task(hnet, profiles, fresh, 1 - labels).name == "swapped"
    found = identify_task(hnet, profiles, fresh, labels)
    assert found.probabilities["as it is"] > 0.99
    other = identify_task(hnet, profiles, fresh, torch.arange(20) // 10)  # right for half
    assert other.name is None
    assert unsure.name is not None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.uint16])
def test_labels_of_any_integer_type_tell_the_same_task(dtype):
    hnet, profiles = known()
    x, y = drawn(2, 2, 3)
    expected = identify_task(hnet, profiles, x, y)
    assert identify_task(hnet, profiles, x, y.to(dtype)) == expected


def test_a_label_that_a_task_lacks_rules_it_out(make):
    hnet = make(tasks=2)
    x, y = samples(0)
    profiles = task_profiles(hnet, {"known 0": (x, y.clamp(max=1)), "known 1": (x, y)})
    found = identify_task(hnet, profiles, x, y)
    assert found.likeliest == "known 1"
    assert found.probabilities["known 0"] == 0


def test_inputs_that_are_no_numbers_are_told_by_the_features():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x).mean(1))

    hnet = HyperNetwork(Words(), Sparse(), TaskEmbedding(["low", "high"], dim=16))
    rng = torch.Generator().manual_seed(0)

    def text(first: int, count: int) -> Tensor:
        return torch.randint(first, first + 10, (count, 5), generator=rng)

    y = torch.arange(100) % 2
    profiles = task_profiles(hnet, {"low": (text(0, 100), y), "high": (text(10, 100), y)})
    assert identify_task(hnet, profiles, text(0, 20)).likeliest == "low"
    assert identify_task(hnet, profiles, text(10, 20)).likeliest == "high"


def test_tasks_that_come_and_go_change_nothing():
    torch.manual_seed(0)
    hnet, profiles = known(module=normed())
    hnet.train()
    hnet(drawn(0, 3)[0], task=0)  # its batch norms now have statistics of their own
    profiles = task_profiles(hnet, {name: drawn(i, 1) for i, name in enumerate(NAMES)})
    x = drawn(0, 2)[0]
    before = identify_task(hnet, profiles, x)
    state = {name: tensor.clone() for name, tensor in hnet.state_dict().items()}
    hnet.add_task("new", "left")
    hnet.remove_task("middle")
    assert identify_task(hnet, profiles, x) == before
    assert hnet.training
    for name in ("target.module.0.weight", "generator.weight"):
        if name in state:
            assert torch.equal(hnet.state_dict()[name], state[name])


def test_identify_task_refuses_what_does_not_fit():
    hnet, profiles = known()
    x, y = drawn(0, 2, 60)
    for arguments, message in (
        ((x[:0],), "at least one sample, got none"),
        ((x, y[:3]), r"integers \[60\], got shape \[3\]"),
        ((x, y + 7), r"`y` must be labels that some task has, got \[7, 8\]"),
        ((x, y.float()), "^`y` must be class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            identify_task(hnet, profiles, *arguments)
    with pytest.raises(TypeError, match=r"^`x` must be a tensor or an array .*, got a str"):
        identify_task(hnet, profiles, "images")
    with pytest.raises(
        TypeError, match=r"`profiles` must be what `task_profiles` .*, got a Tensor"
    ):
        identify_task(hnet, x, y)
    with pytest.raises(ValueError, match="`significance` must be at most 1, got 2"):
        identify_task(hnet, profiles, x, significance=2)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_named(wrong):
    hnet, profiles = known()
    x, y = drawn(0, 2, 60)
    x[3, 2] = x[40, 0] = wrong
    message = "must be finite numbers, got others in 2 of 60 samples, counted from 0: 3, 40$"
    with pytest.raises(ValueError, match=f"^`x` {message}"):
        identify_task(hnet, profiles, x)
    for refused in (
        lambda: task_profiles(hnet, {"left": [(x[:30], y[:30]), (x[30:], y[30:])]}),
        lambda: task_profiles(hnet, {"left": drawn(0, 1)}, validation={"left": (x, y)}),
        lambda: profiles.add(hnet, {"left": (x, y)}),
    ):
        with pytest.raises(ValueError, match=f"^inputs of task 'left' {message}"):
            refused()


def test_features_that_are_not_finite_are_refused():
    hnet, _ = known()
    with torch.no_grad():
        hnet.conditioner.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"features that `hnet` gives .* for 200 of 200 samples"):
        task_profiles(hnet, {"left": drawn(0, 1)})


@pytest.mark.parametrize(
    "conditioner", [InputEncoder(nn.Linear(6, 8), 8), SupportSet(nn.Linear(6, 8), 8, 3), Noise(8)]
)
def test_no_task_is_told_where_none_has_a_name(conditioner):
    hnet = HyperNetwork(nn.Linear(6, 3), Sparse(), conditioner)
    with pytest.raises(TypeError, match="knows no tasks by name; its conditioner is a "):
        task_profiles(hnet, {"a": samples(0)})
