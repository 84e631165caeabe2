import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsehyper.lab.data import (
    Hue,
    Images,
    Permuted,
    Rotated,
    Source,
    Split,
    Task,
    load_source,
    make_tasks,
)


def _everything(split, task):
    (batch,) = split.batches(task, split.counts[task] or 1)
    return batch


def _shown(tasks, split):
    """The images of a split, identified by their pixels, in no order."""
    scale = torch.tensor(tasks.std).view(-1, 1, 1)
    shift = torch.tensor(tasks.mean).view(-1, 1, 1)
    seen = set()
    for task in range(len(tasks.names)):
        for batch in split.batches(task, 50):
            pixels = ((batch.x * scale + shift) * 255).round().byte().flatten(2)
            seen |= {image.sort().values.numpy().tobytes() for image in pixels}
    return seen


def test_training_images_are_normalised(noise):
    tasks = make_tasks(noise(shape=(3, 4, 4)), Permuted(1))
    x = _everything(tasks.train, 0).x
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))


def test_statistics_are_of_the_training_images_only(noise):
    source = noise()
    bright = source.test.pixels.clone().fill_(255)
    other = replace(source, test=Images(bright, source.test.labels))
    assert make_tasks(source, Split(2)).mean == make_tasks(other, Split(2)).mean


def test_a_constant_channel_is_left_finite(noise):
    source = noise(shape=(3, 4, 4))
    source.train.pixels[:, 1] = 7
    tasks = make_tasks(source, Split(2))
    assert tasks.mean[1] == 7 / 255
    assert tasks.std[1] == 1
    assert (_everything(tasks.train, 0).x[:, 1] == 0).all()


MAKERS = [
    Split(2),
    Split(2, combinations=True),
    Split([(0, 1), (2, 3), (0, 2), (1, 3), (0, 1, 2, 3)]),
    Permuted(3),
    Permuted(2, of=Split(2, combinations=True)),
    Rotated([0, 180]),
    Hue([0.0, 0.0]),
]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(MAKERS), st.sampled_from([0.1, 0.3]), st.integers(0, 99))
def test_no_image_is_ever_in_two_splits(data, maker, val_fraction, seed):
    """Also with copies within and across the given parts, of equal or of other labels."""
    rng = np.random.default_rng(seed)
    different = torch.from_numpy(rng.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8))
    rows = torch.arange(60)
    copied = data.draw(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=8))
    for to, of in copied:
        rows[to] = of
    pixels, labels = different[rows], torch.arange(60) % 4
    source = Source(
        "copies",
        tuple("abcd"),
        *(Images(pixels[part], labels[part]) for part in (slice(40), slice(40, 60))),
    )
    tasks = make_tasks(source, maker, val_fraction=val_fraction, seed=seed)
    train, val, test = (_shown(tasks, s) for s in (tasks.train, tasks.val, tasks.test))
    assert train
    assert val
    assert test
    assert not train & val
    assert not train & test
    assert not val & test
    dropped = set(rows[:40].tolist()) & set(rows[40:].tolist())
    assert tasks.copies_dropped == sum(int(r) in dropped for r in rows[:40])


def test_copies_of_test_images_are_dropped_and_counted(noise, caplog):
    source = noise()
    source.train.pixels[3] = source.test.pixels[5]
    source.train.pixels[8] = source.test.pixels[5]
    with caplog.at_level(logging.INFO, logger="sparsehyper"):
        tasks = make_tasks(source, Split(2))
    assert tasks.copies_dropped == 2
    assert "noise: dropped 2 training images" in caplog.text
    assert sum(tasks.train.counts) + sum(tasks.val.counts) == 118


def test_validation_is_a_share_of_every_class(noise):
    tasks = make_tasks(noise(n=200), Split(2), val_fraction=0.2)
    assert tasks.train.counts == (80, 80)
    for task in range(2):
        assert _everything(tasks.val, task).y.bincount().tolist() == [10, 10]


def test_no_validation(noise):
    tasks = make_tasks(noise(), Split(2), val_fraction=0)
    assert tasks.val.counts == (0, 0)
    assert list(tasks.val.batches(0, 10)) == []


def test_same_seed_same_everything_and_the_fingerprint_tells(noise):
    source = noise()
    first, again = (make_tasks(source, Split(2), seed=5) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert torch.equal(_everything(first.val, 0).x, _everything(again.val, 0).x)

    changed = noise()
    changed.train.pixels[0, 0, 0, 0] ^= 1
    relabelled = noise()
    relabelled.train.labels[0] = 3
    renamed = replace(source, classes=("a", "b", "c", "e"))
    others = [
        make_tasks(source, Split(2), seed=6),
        make_tasks(source, Split(2), val_fraction=0.2, seed=5),
        make_tasks(source, Split(4), seed=5),
        make_tasks(source, Rotated(2, of=Split(2)), seed=5),
        make_tasks(source, Permuted(2, seed=0), seed=5),
        make_tasks(source, Permuted(2, seed=1), seed=5),
        make_tasks(changed, Split(2), seed=5),
        make_tasks(relabelled, Split(2), seed=5),
        make_tasks(renamed, Split(2), seed=5),
    ]
    assert len({tasks.fingerprint for tasks in [first, *others]}) == 10


def test_fingerprint_is_the_same_on_every_machine():
    assert make_tasks(load_source("digits"), Split(2)).fingerprint == "4d3cbc81f09ae957"


def test_tasks_of_the_source_itself(noise):
    own = (Task("one", (2, 0), ("C", "A")), Task("two", (1, 3, 0), ("B", "D", "A")))
    tasks = make_tasks(replace(noise(), tasks=own))
    assert tasks.names == ("one", "two")
    assert tasks.classes == (("C", "A"), ("B", "D", "A"))
    assert _everything(tasks.train, 1).y.unique().tolist() == [0, 1, 2]


def test_a_source_without_tasks_needs_a_maker(noise):
    with pytest.raises(ValueError, match=r"`maker` is needed, as source 'noise' defines no tasks"):
        make_tasks(noise())


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_val_fraction_out_of_range(noise, fraction):
    with pytest.raises(ValueError, match=rf"`val_fraction` must be .*got {fraction}"):
        make_tasks(noise(), Split(2), val_fraction=fraction)


def test_negative_seed(noise):
    with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -1"):
        make_tasks(noise(), Split(2), seed=-1)


def test_a_task_left_without_images(noise):
    few = noise(n=4)
    with pytest.raises(ValueError, match=r"task 'a-b' has no validation images"):
        make_tasks(few, Split(2))
    source = noise()
    part = source.test.labels < 2
    no_test = replace(source, test=Images(*(t[part] for t in source.test)))
    with pytest.raises(ValueError, match=r"task 'c-d' has no test images"):
        make_tasks(no_test, Split(2))
    part = source.train.labels != 2
    no_class = replace(source, train=Images(*(t[part] for t in source.train)))
    with pytest.raises(ValueError, match=r"class 'c' of task 'c-d' has no training images"):
        make_tasks(no_class, Split(2))


def test_all_training_images_are_test_images(noise):
    source = noise()
    with pytest.raises(ValueError, match=r"every training image of `source` 'noise' is"):
        make_tasks(replace(source, train=source.test), Split(2))
