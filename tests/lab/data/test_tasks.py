from dataclasses import replace

import pytest
import torch

from sparsehyper.lab.data import (
    Batches,
    Hue,
    Images,
    Permuted,
    Rotated,
    Source,
    Split,
    load_source,
    make_tasks,
)


def _everything(split, task):
    (batch,) = split.batches(task, split.counts[task] or 1)
    return batch


def test_batch_is_the_image_normalised_with_the_label_of_its_task(noise):
    source = noise()
    tasks = make_tasks(source, Split([(3, 1), (0, 2)]), val_fraction=0)
    ones = (source.train.labels == 1).nonzero().flatten()
    threes = (source.train.labels == 3).nonzero().flatten()
    rows = torch.cat([ones, threes]).sort().values
    index = torch.tensor([0, 5, 2])
    batch = tasks.train.batch(torch.tensor([0, 0, 0]), index)
    raw = source.train.pixels[rows[index]].double() / 255
    expected = (raw - tasks.mean[0]) / tasks.std[0]
    torch.testing.assert_close(batch.x.double(), expected, atol=1e-6, rtol=1e-5)
    assert batch.x.dtype == torch.float32
    assert batch.y.tolist() == [{3: 0, 1: 1}[int(c)] for c in source.train.labels[rows[index]]]


def test_one_batch_of_several_tasks_equals_batches_of_one(noise):
    tasks = make_tasks(noise(shape=(3, 6, 6)), Hue([0, 0.3], of=Split(2)))
    task, index = torch.tensor([3, 0, 2, 0, 1]), torch.tensor([1, 2, 3, 4, 5])
    mixed = tasks.train.batch(task, index)
    for i in range(5):
        one = tasks.train.batch(task[i : i + 1], index[i : i + 1])
        assert torch.equal(one.x[0], mixed.x[i])
        assert one.y[0] == mixed.y[i]
    assert torch.equal(mixed.task, task)


def test_batches_show_every_image_once_and_in_order(noise):
    tasks = make_tasks(noise(), Split(2))
    batches = list(tasks.train.batches(1, 16))
    assert sum(len(b.y) for b in batches) == tasks.train.counts[1]
    whole = _everything(tasks.train, 1)
    assert torch.equal(torch.cat([b.x for b in batches]), whole.x)
    assert whole.task.unique().tolist() == [1]
    assert len(whole.x.flatten(1).unique(dim=0)) == tasks.train.counts[1]


def test_variants_see_the_images_altered(noise):
    source = noise(shape=(1, 5, 5))
    plain = make_tasks(source, Split([(0, 1, 2, 3)]))
    x = _everything(plain.test, 0).x
    permuted = make_tasks(source, Permuted(3))
    table = Permuted(3).transform(source).settings
    torch.testing.assert_close(
        _everything(permuted.test, 2).x.flatten(1), x.flatten(1)[:, table[2]]
    )
    rotated = make_tasks(source, Rotated([0, 180]))
    torch.testing.assert_close(_everything(rotated.test, 0).x, x)
    torch.testing.assert_close(_everything(rotated.test, 1).x, x.flip(2, 3), atol=1e-4, rtol=0)


def test_describe():
    rows = make_tasks(load_source("digits"), Split(5)).describe()
    assert rows[1]["task"] == "5-6-7-8-9"
    assert rows[1]["classes"] == ("5", "6", "7", "8", "9")
    assert rows[1]["train"] + rows[1]["val"] + rows[1]["test"] == 896


@pytest.mark.parametrize("task", [-1, 2])
def test_task_out_of_range(noise, task):
    split = make_tasks(noise(), Split(2)).train
    with pytest.raises(ValueError, match=rf"`task` must be in 0..1, got {task}"):
        split.batch(torch.tensor([0, task]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=rf"`task` must be in 0..1, got {task}"):
        list(split.batches(task, 10))


@pytest.mark.parametrize("index", [-1, 54])
def test_index_out_of_range(noise, index):
    split = make_tasks(noise(), Split(2)).train
    with pytest.raises(ValueError, match=rf"`index` must be in 0..53, got {index}"):
        split.batch(torch.tensor([0, 1]), torch.tensor([0, index]))


def test_batch_size_zero(noise):
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1, got 0"):
        list(make_tasks(noise(), Split(2)).train.batches(0, 0))


def test_empty_batch(noise):
    none = torch.zeros(0, dtype=torch.int64)
    assert make_tasks(noise(), Split(2)).train.batch(none, none).x.shape == (0, 1, 6, 5)


def test_select_keeps_images_and_labels():
    tasks = make_tasks(load_source("digits"), Split(2))
    some = tasks.select(["6-7", "0-1"])
    assert (some.names, some.classes) == (("6-7", "0-1"), (("6", "7"), ("0", "1")))
    for part in ("train", "val", "test"):
        new, old = getattr(some, part), getattr(tasks, part)
        assert new.counts == (old.counts[3], old.counts[0])
        for mine, yours in zip(new.batches(0, 500), old.batches(3, 500), strict=True):
            assert torch.equal(mine.x, yours.x)
            assert torch.equal(mine.y, yours.y)
            assert torch.equal(new.labels(0), mine.y)
    assert replace(tasks) != tasks  # images are not compared
    assert some.n_classes == [2, 2]
    assert some.fingerprint != tasks.select(["0-1", "6-7"]).fingerprint != tasks.fingerprint
    with pytest.raises(KeyError, match="unknown task '1-2'; the tasks are: "):
        tasks.select(["1-2"])
    with pytest.raises(ValueError, match="at least one task, got none"):
        tasks.select([])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_numbers_of_any_integer_type(dtype, noise):
    source = noise()
    others = Source(
        source.name,
        source.classes,
        *(Images(part.pixels, part.labels.to(dtype)) for part in (source.train, source.test)),
    )
    assert others.train.labels.dtype == torch.int64
    split, other = (make_tasks(s, Split(2)).train for s in (source, others))
    task, index = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    expected = split.batch(task, index)
    for found in (other.batch(task, index), split.batch(task.to(dtype), index.to(dtype))):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "task", [torch.zeros(2), torch.zeros(2).bool(), torch.zeros(1, 2).int(), 0]
)
def test_task_numbers_are_integers(task, noise):
    split = make_tasks(noise(), Split(2)).train
    with pytest.raises(ValueError, match=r"`task` must be integers \[batch\], got"):
        split.batch(task, torch.zeros(2, dtype=torch.int64))


def test_images_move_once_and_batches_are_made_where_they_are(noise):
    tasks = make_tasks(noise(shape=(3, 5, 5)), Hue([0, 0.3], of=Split(2)))
    moved = tasks.to(torch.device("meta"))
    assert moved.train.pixels is moved.val.pixels
    batch = moved.train.batch(torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert {batch.x.device.type, batch.y.device.type} == {"meta"}
    assert batch.task.device.type == "cpu"
    assert batch.x.shape == (2, 3, 5, 5)
    assert moved.names == tasks.names
    here = tasks.to(torch.device("cpu")).train.batch(torch.tensor([0, 1]), torch.tensor([2, 0]))
    torch.testing.assert_close(here, tasks.train.batch(torch.tensor([0, 1]), torch.tensor([2, 0])))


@pytest.mark.parametrize(("free", "where"), [(10**9, "meta"), (10**3, "cpu")])
def test_images_that_would_fill_a_gpu_stay_on_the_cpu(noise, monkeypatch, free, where):
    class Gpu:
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self.new_empty(0, device="meta"))
    tasks = make_tasks(noise(), Split(2))
    assert tasks.to(Gpu()).train.pixels.device.type == where


@pytest.mark.gpu
def test_batches_made_on_a_gpu_are_those_of_the_cpu(noise):
    for maker in (Permuted(3), Rotated([0, 30]), Hue([0, 0.3], of=Split(2))):
        tasks = make_tasks(noise(shape=(3, 6, 6)), maker)
        there = tasks.to(torch.device("cuda"))
        for augment in ([], ["crop", "flip", "affine"]):
            one, two = (
                Batches(some.train, 12, tasks_per_batch=2, augment=augment).batch(1, 0)
                for some in (tasks, there)
            )
            assert two.x.is_cuda
            torch.testing.assert_close(two.x.cpu(), one.x, rtol=1e-4, atol=1e-4)
            assert torch.equal(two.y.cpu(), one.y)
            assert torch.equal(two.task, one.task)


def test_some_of_the_images_for_all_tasks(noise):
    split = make_tasks(noise(), Split([(0, 1), (2, 0)]), val_fraction=0).train
    chosen = torch.arange(len(split.pixels)) % 3 == 0
    part = split.among(chosen)
    for task in (0, 1):
        whole, some = _everything(split, task), _everything(part, task)
        kept = chosen[split._rows[split._starts[task] :][: split.counts[task]]]
        assert torch.equal(some.x, whole.x[kept])
        assert torch.equal(some.y, whole.y[kept])
        assert torch.equal(part.labels(task), whole.y[kept])
    with pytest.raises(ValueError, match="`chosen` must keep an image of every task, got none"):
        split.among(torch.zeros(len(split.pixels), dtype=torch.bool))
