from collections import Counter

import pytest
import torch

from sparsehyper.lab.data import Batches, Hue, Images, Rotated, Source, Split, make_tasks
from sparsehyper.lab.data.transforms import crop_and_flip


@pytest.fixture
def train(noise):
    """Tasks of about 27, 30, 57 and 27 images."""
    return make_tasks(noise(n=130), Split([(0, 1), (2, 3), (0, 1, 2, 3), (3, 1)])).train


class Recorder:
    """A split that shows which images a batch asks for."""

    image_shape = (1, 16, 16)

    def __init__(self, counts):
        self.counts = counts

    def batch(self, task, index, augment=None):
        return list(zip(task.tolist(), index.tolist(), strict=True))


def _epoch(batches, epoch=0):
    return [batches.batch(epoch, step) for step in range(batches.steps_per_epoch)]


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_pure_function_of_seed_epoch_and_step(train):
    options = {"tasks_per_batch": 2, "augment": ("crop", "flip", "affine")}
    batches = Batches(train, 8, seed=4, **options)
    straight = [*_epoch(batches, 0), *_epoch(batches, 1)]
    fresh = Batches(train, 8, seed=4, **options)
    steps = [(epoch, step) for epoch in (0, 1) for step in range(fresh.steps_per_epoch)]
    backwards = [fresh.batch(epoch, step) for epoch, step in reversed(steps)]
    assert all(_equal(a, b) for a, b in zip(straight, reversed(backwards), strict=True))
    assert not _equal(straight[0], Batches(train, 8, seed=5, **options).batch(0, 0))
    assert not _equal(straight[0], straight[fresh.steps_per_epoch])


def test_the_order_is_the_same_on_every_machine():
    batches = Batches(Recorder((5, 7)), 4, tasks_per_batch=2, seed=3)
    assert batches.batch(2, 0) == [(1, 2), (1, 0), (1, 0), (1, 4)]


@pytest.mark.parametrize("counts", [(10, 7, 1), (3,), (12, 12, 12, 12), (1, 100)])
@pytest.mark.parametrize(
    ("batch_size", "tasks_per_batch"), [(4, 1), (6, 1), (6, 3), (4, 4), (5, 1)]
)
def test_an_epoch_shows_every_image_in_full_batches(counts, batch_size, tasks_per_batch):
    if tasks_per_batch > len(counts):
        return
    batches = Batches(Recorder(counts), batch_size, tasks_per_batch=tasks_per_batch)
    epoch = _epoch(batches)
    assert all(len(batch) == batch_size for batch in epoch)
    seen = Counter(pair for batch in epoch for pair in batch)
    assert seen.keys() == {(task, i) for task, n in enumerate(counts) for i in range(n)}
    piece = batch_size // tasks_per_batch
    pieces = sum(-(-n // piece) for n in counts)
    assert len(epoch) == -(-pieces // tasks_per_batch)
    repeats = sum(seen.values()) - sum(counts)
    assert repeats < len(counts) * piece + batch_size


def test_one_task_a_batch_and_pieces_of_one_task():
    for batch in _epoch(Batches(Recorder((20, 30, 5)), 6)):
        assert len({task for task, _ in batch}) == 1
    for batch in _epoch(Batches(Recorder((20, 30, 5)), 6, tasks_per_batch=2)):
        assert len({task for task, _ in batch[:3]}) == len({task for task, _ in batch[3:]}) == 1


def test_a_piece_repeats_no_image_unless_the_task_has_fewer():
    for batch in _epoch(Batches(Recorder((20, 9)), 8)):
        assert len(set(batch)) == 8


def test_epochs_and_tasks_are_shuffled_differently():
    batches = Batches(Recorder((50, 50)), 50)
    first, second = _epoch(batches, 0), _epoch(batches, 1)
    orders = {tuple(i for _, i in batch) for batch in first + second}
    assert len(orders) == 4


@pytest.mark.parametrize("processes", [2, 4])
def test_shards_are_the_rows_of_the_whole_batch(train, processes):
    options = {"tasks_per_batch": 2, "seed": 1, "augment": ("affine", "flip", "crop")}
    whole = Batches(train, 8, **options)
    shards = [Batches(train, 8, shard=(r, processes), **options) for r in range(processes)]
    assert {shard.steps_per_epoch for shard in shards} == {whole.steps_per_epoch}
    for epoch, step in ((0, 0), (1, 3)):
        expected = whole.batch(epoch, step)
        for rank, shard in enumerate(shards):
            mine = (part[rank::processes] for part in expected)
            assert _equal(shard.batch(epoch, step), mine)


def test_augmentation_alters_images_and_not_labels(train):
    plain = Batches(train, 30)
    for augment in (["crop"], ["flip"], ["crop", "flip"]):
        altered = Batches(train, 30, augment=augment).batch(0, 0)
        before = plain.batch(0, 0)
        assert torch.equal(altered.y, before.y)
        assert torch.equal(altered.task, before.task)
        changed = (altered.x != before.x).flatten(1).any(1)
        assert 5 < changed.sum() < 30


def test_flip_mirrors_about_half(train):
    before, after = (Batches(train, 30, augment=a).batch(0, 0).x for a in ((), ("flip",)))
    kept = (after == before).flatten(1).all(1)
    mirrored = (after == before.flip(3)).flatten(1).all(1)
    assert (kept | mirrored).all()
    assert 5 < mirrored.sum() < 25


def test_every_step_draws_its_own_augmentation(train):
    plain, flipped = (Batches(train, 30, augment=a) for a in ((), ("flip",)))
    patterns = {
        tuple((flipped.batch(0, step).x == plain.batch(0, step).x).flatten(1).all(1).tolist())
        for step in range(3)
    }
    assert len(patterns) == 3


@pytest.mark.parametrize(("side", "reach"), [(1, 0), (2, 1), (8, 1), (28, 3), (32, 4)])
def test_crop_moves_up_to_an_eighth(side, reach, noise):
    split = make_tasks(noise(shape=(1, side, side), n=400), Split(4), val_fraction=0).train
    before, after = (Batches(split, 200, augment=a).batch(0, 0).x for a in ((), ("crop",)))
    moves = [torch.tensor([m]) for m in range(-reach, reach + 1)]
    windows = {
        (int(d), int(r)): crop_and_flip(before, d.expand(200), r.expand(200))
        for d in moves
        for r in moves
    }
    found = [
        {move for move, window in windows.items() if torch.equal(window[i], after[i])}
        for i in range(200)
    ]
    assert all(found)
    if side >= 8:
        assert len(set().union(*found)) > 0.8 * len(windows)


def test_affine_goes_no_further_than_it_says():
    """The middle of a blob shifts, and its area changes, within the range; both are used."""
    pixels = torch.zeros(400, 1, 40, 40, dtype=torch.uint8)
    pixels[..., 16:24, 16:24] = 255
    train, test = (Images(images, torch.arange(400) % 2) for images in (pixels, 255 - pixels))
    split = make_tasks(Source("blobs", ("a", "b"), train, test), Split(2), val_fraction=0).train
    plain, x = (Batches(split, 400, augment=a).batch(0, 0).x for a in ((), ("affine",)))
    x = (x - plain.min()) / (plain.max() - plain.min())
    area = x.sum((1, 2, 3)) / 64
    places = torch.arange(40.0) - 19.5
    right = (x.sum((1, 2)) @ places) / (64 * area)
    assert area.min() == pytest.approx(0.8**2, abs=0.03)
    assert area.max() == pytest.approx(1.2**2, abs=0.05)
    assert right.abs().max() == pytest.approx(0.1 * 40 * 1.2, rel=0.15)
    assert right.mean() == pytest.approx(0, abs=0.3)


def test_augmentation_comes_before_the_variant(noise):
    """The image is cropped, then turned: the black corners of the turn are not cropped."""
    split = make_tasks(noise(shape=(1, 16, 16)), Rotated([45])).train
    cropped = Batches(split, 20, augment=["crop"]).batch(0, 0).x
    corner = Batches(split, 20).batch(0, 0).x[0, 0, 0, 0]
    assert (cropped[:, 0, 0, 0] == corner).all()


def test_works_on_colours(noise):
    split = make_tasks(noise(shape=(3, 8, 8)), Hue(2)).train
    x, y, task = Batches(split, 10, tasks_per_batch=2, augment=["crop", "flip", "affine"]).batch(
        0, 0
    )
    assert x.shape == (10, 3, 8, 8)
    assert y.shape == task.shape == (10,)


def test_sizes_that_do_not_fit(train):
    with pytest.raises(ValueError, match=r"multiple of `tasks_per_batch`, 3, got 8"):
        Batches(train, 8, tasks_per_batch=3)
    with pytest.raises(ValueError, match=r"multiple of the processes of `shard`, 3, got 8"):
        Batches(train, 8, shard=(0, 3))
    with pytest.raises(ValueError, match=r"`tasks_per_batch` must be at most the 4 tasks .* got 5"):
        Batches(train, 10, tasks_per_batch=5)


@pytest.mark.parametrize("name", ["batch_size", "tasks_per_batch"])
def test_sizes_below_one(train, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got 0"):
        Batches(train, **{"batch_size": 4, name: 0})


def test_bad_seed_shard_and_augmentation(train):
    with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -2"):
        Batches(train, 4, seed=-2)
    with pytest.raises(ValueError, match=r"`shard` must have a rank below 2 processes, got 2"):
        Batches(train, 4, shard=(2, 2))
    with pytest.raises(ValueError, match=r"`shard` must be at least 0, got -1"):
        Batches(train, 4, shard=(-1, 2))
    with pytest.raises(
        ValueError, match=r"`augment` must be one of 'crop', 'flip', 'affine'; got 'b"
    ):
        Batches(train, 4, augment=["flip", "blur"])
    with pytest.raises(TypeError, match=r"`augment` must be a sequence of names, got 'flip'"):
        Batches(train, 4, augment="flip")


def test_epoch_and_step_out_of_range(train):
    batches = Batches(train, 10)
    last = batches.steps_per_epoch - 1
    with pytest.raises(ValueError, match=rf"`step` must be in 0..{last}, got {last + 1}"):
        batches.batch(0, last + 1)
    with pytest.raises(ValueError, match=r"`epoch` must be at least 0, got -1"):
        batches.batch(-1, 0)
    with pytest.raises(ValueError, match=r"`step` must be at least 0, got -1"):
        batches.batch(0, -1)


def test_a_split_without_images(noise):
    val = make_tasks(noise(), Split(2), val_fraction=0).val
    with pytest.raises(ValueError, match=r"`split` has no images of task 0"):
        Batches(val, 4)
