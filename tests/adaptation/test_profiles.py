from __future__ import annotations

import pytest
import torch

from helpers.small_tasks import samples
from sparsehyper import TaskProfiles, identify_task, task_profiles


def shifted(task: int, seed: int = 0, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = samples(10 * seed + task, count)
    return x + 2 * task, y


@pytest.fixture
def profiled(make):
    hnet = make(tasks=3)
    return hnet, task_profiles(hnet, {f"known {i}": shifted(i) for i in range(3)})


def test_profiles_are_the_same_every_time(profiled):
    hnet, profiles = profiled
    torch.manual_seed(7)
    again = task_profiles(hnet, {f"known {i}": shifted(i) for i in range(3)})
    for name, tensor in profiles.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], tensor), name


def test_tasks_are_added_removed_and_renamed(profiled):
    hnet, profiles = profiled
    x = shifted(5, seed=1)[0]
    assert identify_task(hnet, profiles, x).name is None
    hnet.add_task("new")
    more = profiles.add(hnet, {"new": shifted(5)})
    assert identify_task(hnet, more, x).name == "new"
    assert identify_task(hnet, more, shifted(1, seed=1)[0]).name == "known 1"
    assert list(more.rename("new", "hats").tasks) == ["known 0", "known 1", "known 2", "hats"]
    assert identify_task(hnet, more.rename("new", "hats"), x).name == "hats"
    assert identify_task(hnet, more.remove("new"), x) == identify_task(hnet, profiles, x)
    assert list(profiles.tasks) == ["known 0", "known 1", "known 2"]
    assert list(more.rename("new", "new").tasks) == list(more.tasks)
    with pytest.raises(ValueError, match="`new_name` is 'known 1', which is the name of another"):
        more.rename("new", "known 1")
    for change in (lambda: more.remove("caps"), lambda: more.rename("caps", "hats")):
        with pytest.raises(KeyError, match="no profile of a task 'caps'; there are those of 'kno"):
            change()


def test_profiles_are_kept_as_tensors(profiled):
    hnet, profiles = profiled
    tensors = profiles.to_tensors()
    again = TaskProfiles.from_tensors(profiles.tasks, tensors)
    x = shifted(1, seed=1)[0]
    assert identify_task(hnet, again, x) == identify_task(hnet, profiles, x)
    assert list(again.tasks) == list(profiles.tasks)
    sizes = [t.nbytes for name, t in tensors.items() if name.startswith("tasks/1/")]
    assert 0 < sum(sizes) < 1000
    del tensors["tasks/1/means"]
    with pytest.raises(KeyError, match="tasks/1/means"):
        TaskProfiles.from_tensors(profiles.tasks, tensors)


def test_validation_samples_say_how_sure_one_can_be(make):
    hnet = make(tasks=3)
    train = {f"known {i}": shifted(i) for i in range(3)}
    noisy = {
        n: (x + 3 * torch.randn(x.shape, generator=torch.Generator()), y)
        for n, (x, y) in train.items()
    }
    certain = task_profiles(hnet, train)
    unsure = task_profiles(hnet, train, validation=noisy)
    x = shifted(1, seed=1)[0][:1]
    probabilities = [
        max(identify_task(hnet, profiles, x).probabilities.values())
        for profiles in (certain, unsure)
    ]
    assert probabilities[1] < probabilities[0] - 0.05


def test_labels_that_are_booleans_are_classes(make):
    hnet = make(tasks=3)
    tasks = {f"known {i}": shifted(i) for i in range(3)}
    numbers = task_profiles(hnet, {name: (x, (y > 0).long()) for name, (x, y) in tasks.items()})
    booleans = task_profiles(hnet, {name: (x, y > 0) for name, (x, y) in tasks.items()})
    for name, tensor in numbers.to_tensors().items():
        assert torch.equal(booleans.to_tensors()[name], tensor), name


def test_copies_are_held_out_together(make):
    hnet, own = make(tasks=2), {f"known {i}": samples(i, 100) for i in range(2)}
    copied = {name: (x.repeat(20, 1), y.repeat(20)) for name, (x, y) in own.items()}
    once, several = (task_profiles(hnet, of).calibration.temperature for of in (own, copied))
    assert several[0] <= once[0]  # no surer


def test_validation_samples_of_other_classes_are_left_out(make):
    hnet = make(tasks=2)
    tasks = {f"known {i}": shifted(i) for i in range(2)}
    validation = {f"known {i}": shifted(i, seed=1) for i in range(2)}
    x, y = validation["known 0"]
    more = {**validation, "known 0": (torch.cat([x, x + 9]), torch.cat([y, y + 5]))}
    expected = task_profiles(hnet, tasks, validation=validation)
    found = task_profiles(hnet, tasks, validation=more)
    fresh = shifted(0, seed=2)
    for labels in (None, fresh[1]):
        one, other = (identify_task(hnet, p, fresh[0], labels) for p in (expected, found))
        assert one.p_value == pytest.approx(other.p_value, abs=0.05)


def before_labels(tensors):
    """The tensors of profiles from before typical scores with labels were among them."""
    pairs = ("/score_", "/held", "calibration/")
    return {n: t[0] if any(p in n for p in pairs) else t for n, t in tensors.items()}


def test_profiles_from_before_labels_were_calibrated_are_read(profiled):
    hnet, profiles = profiled
    older = TaskProfiles.from_tensors(profiles.tasks, before_labels(profiles.to_tensors()))
    x, y = shifted(1, seed=1)
    expected = identify_task(hnet, profiles, x)
    assert identify_task(hnet, older, x) == expected
    found = identify_task(hnet, older, x, y)
    assert (found.name, found.p_value) == ("known 1", expected.p_value)
    hnet.add_task("new")
    more = older.add(hnet, {"new": shifted(5)})
    kinds = {len(profile.held) for profile in more.tasks.values()}
    assert kinds == {1}  # a file holds those of one kind or of two
    again = TaskProfiles.from_tensors(more.tasks, more.to_tensors())
    assert identify_task(hnet, again, *shifted(5, seed=1)).name == "new"


def test_labels_that_are_no_classes_are_ignored(make):
    hnet = make(tasks=3)
    tasks = {f"known {i}": (shifted(i)[0], torch.randn(60, 2)) for i in range(3)}
    profiles = task_profiles(hnet, tasks)
    assert [p.counts.tolist() for p in profiles.tasks.values()] == [[60.0]] * 3
    assert identify_task(hnet, profiles, shifted(2, seed=1)[0]).name == "known 2"


def test_classes_without_samples_are_not_expected(make):
    hnet = make(tasks=2)
    x, y = shifted(0)
    gaps = task_profiles(hnet, {"known 0": (x, 3 * y), "known 1": shifted(1)})
    dense = task_profiles(hnet, {"known 0": (x, y), "known 1": shifted(1)})
    fresh = shifted(0, seed=1)[0]
    expected = identify_task(hnet, dense, fresh)
    found = identify_task(hnet, gaps, fresh)
    assert found.p_value == pytest.approx(expected.p_value, abs=1e-4)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


def test_task_profiles_refuses_what_does_not_fit(make):
    hnet = make(tasks=2)
    x, y = shifted(0)
    with pytest.raises(KeyError, match="caps"):
        task_profiles(hnet, {"caps": (x, y)})
    with pytest.raises(TypeError, match="`tasks` must be samples by name"):
        task_profiles(hnet, [(x, y)])
    with pytest.raises(ValueError, match="`tasks` must name at least one task, got none"):
        task_profiles(hnet, {})
    with pytest.raises(ValueError, match="a class with at least two samples, got none"):
        task_profiles(hnet, {"known 0": (x[:2], torch.arange(2))})
    with pytest.raises(ValueError, match="samples that differ from one another, got equal ones"):
        task_profiles(hnet, {"known 0": (torch.ones(9, 6), torch.arange(9) % 2)})
