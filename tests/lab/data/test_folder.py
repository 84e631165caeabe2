import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sparsehyper.lab.data import Hue, Images, load_folder, make_tasks


def _picture(seed=0, shape=(6, 5)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def fill(tmp_path):
    """Write ``n`` different pictures to each of the folders."""
    counter = iter(range(10**6))

    def write(*folders, n=5, suffix=".png", shape=(6, 5)):
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                _picture(next(counter), shape).save(tmp_path / folder / f"{i}{suffix}")
        return tmp_path

    return write


def test_tasks_classes_and_split(fill):
    root = fill("pets/cat", "pets/dog", "cars/a", "cars/b", "cars/c", n=10)
    source = load_folder(root)
    assert source.classes == ("cars/a", "cars/b", "cars/c", "pets/cat", "pets/dog")
    assert source.train.labels.bincount().tolist() == [8] * 5
    assert source.test.labels.bincount().tolist() == [2] * 5
    tasks = make_tasks(source)
    assert tasks.names == ("cars", "pets")
    assert tasks.classes == (("a", "b", "c"), ("cat", "dog"))
    assert tasks.image_shape == (1, 6, 5)
    assert tasks.train.counts == (21, 14)
    assert tasks.test.counts == (6, 4)


def test_pixels_and_labels_belong_together(fill):
    root = fill("t/x", "t/y")
    source = load_folder(root)
    images = {
        pixels.numpy().tobytes(): int(label)
        for part in (source.train, source.test)
        for pixels, label in zip(*part, strict=True)
    }
    assert len(images) == 10
    for path in root.rglob("*.png"):
        expected = source.classes.index(f"t/{path.parent.name}")
        assert images[np.asarray(Image.open(path)).tobytes()] == expected


def test_split_follows_the_seed(fill):
    root = fill("t/x", "t/y", n=12)
    first, again, other = (load_folder(root, seed=seed).test.pixels for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_given_train_and_test(fill):
    root = fill("train/t/x", "train/t/y", "train/t/z", n=4)
    fill("test/t/x", "test/t/z", n=2)
    source = load_folder(root)
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.test.labels.tolist() == [0, 0, 2, 2]
    x = np.asarray(Image.open(root / "test" / "t" / "z" / "1.png"))
    np.testing.assert_array_equal(source.test.pixels[3, 0], x)


def test_names_are_ordered_by_number(fill):
    source = load_folder(fill("task10/c2", "task10/c10", "task9/b", "task9/a", n=2))
    assert source.classes == ("task9/a", "task9/b", "task10/c2", "task10/c10")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPEG", ".webp"])
def test_image_files_of_any_case(fill, suffix):
    assert len(load_folder(fill("t/x", "t/y", n=3, suffix=suffix)).train.labels) == 4


def test_hidden_files_and_other_files_are_ignored(fill):
    root = fill("t/x", "t/y")
    for stray in (".DS_Store", "notes.txt", "t/labels.csv", "t/x/Thumbs.db", "t/x/._0.png"):
        (root / stray).write_bytes(b"no picture")
    (root / ".git" / "objects").mkdir(parents=True)
    source = load_folder(root)
    assert source.classes == ("t/x", "t/y")
    assert len(source.train.labels) + len(source.test.labels) == 10


def test_one_colour_file_makes_all_colour(fill):
    root = fill("t/x", "t/y")
    assert load_folder(root).image_shape == (1, 6, 5)
    Image.new("RGB", (5, 6), (250, 0, 0)).save(root / "t" / "x" / "red.png")
    source = load_folder(root)
    assert source.image_shape == (3, 6, 5)
    assert make_tasks(source, Hue([0, 0.5])).names == ("t hue+0", "t hue+0.5")


@pytest.mark.parametrize(("size", "expected"), [(8, (8, 8)), ((4, 9), (4, 9))])
def test_sizes_that_differ_need_an_image_size(fill, size, expected):
    root = fill("t/x")
    fill("t/y", shape=(30, 40))
    with pytest.raises(ValueError, match=r"got 2: 6×5 \(5\), 30×40 \(5\); .* with an `image_size`"):
        load_folder(root)
    assert load_folder(root, image_size=size).image_shape == (1, *expected)


def test_copies_stay_on_one_side(fill):
    root = fill("t/x", "t/y", "u/x", "u/y", n=6)
    for i in range(6):  # the same pictures in two tasks
        (root / "u" / "y" / f"{i}.png").write_bytes((root / "t" / "y" / f"{i}.png").read_bytes())
    source = load_folder(root)
    train, test = (
        {p.numpy().tobytes() for p in part.pixels} for part in (source.train, source.test)
    )
    assert not train & test


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`root` is not a directory: .*nowhere"):
        load_folder(tmp_path / "nowhere")


def test_no_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"has no tasks; expected <task>/<class>/"):
        load_folder(tmp_path)


def test_task_without_images(fill):
    root = fill("t/x", "t/y")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match=r"task 'empty' in .* has no images"):
        load_folder(root)
    (root / "empty" / "a").mkdir()
    (root / "empty" / "b").mkdir()
    with pytest.raises(ValueError, match=r"task 'empty' in .* has no images"):
        load_folder(root)


def test_task_with_one_class(fill):
    with pytest.raises(ValueError, match=r"task 'u' in .* has one class, 'only'"):
        load_folder(fill("t/x", "t/y", "u/only"))


def test_class_without_images(fill):
    root = fill("t/x", "t/y")
    (root / "t" / "z").mkdir()
    with pytest.raises(ValueError, match=r"class 'z' of task 't' in .* has no images"):
        load_folder(root)


@pytest.mark.parametrize("file", ["lost.png", "t/lost.png"])
def test_image_at_the_wrong_level(fill, file):
    root = fill("t/x", "t/y")
    _picture().save(root / file)
    with pytest.raises(ValueError, match=rf"image .*{file} is not in a class folder"):
        load_folder(root)


def test_folder_one_level_too_deep(fill):
    with pytest.raises(ValueError, match=r"folder .*deeper is one level too deep"):
        load_folder(fill("t/x", "t/y", "t/y/deeper"))


def test_only_one_part_or_others_beside(fill):
    root = fill("train/t/x", "train/t/y")
    with pytest.raises(ValueError, match=r"must have train/ and test/, .* got train/$"):
        load_folder(root)
    fill("test/t/x", "more/t/x")
    with pytest.raises(ValueError, match=r"got more/, test/, train/$"):
        load_folder(root)


def test_validation_images_of_ones_own(fill):
    root = fill("train/t/x", "train/t/y", "test/t/x", "test/t/y", "val/t/x", "val/t/y")
    source = load_folder(root)
    tasks = make_tasks(source)
    assert tasks.train.counts == (len(source.train.labels),)
    assert tasks.val.counts == (len(source.val.labels),)
    assert torch.equal(tasks.val.pixels, source.val.pixels)
    assert tasks.fingerprint != make_tasks(replace(source, val=None)).fingerprint


def test_an_image_is_tested_on_before_it_is_validated_or_trained_on(fill):
    root = fill("train/t/x", "train/t/y", "test/t/x", "test/t/y", "val/t/x", "val/t/y")
    source = load_folder(root)
    both = Images(
        torch.cat([source.val.pixels, source.test.pixels]),
        torch.cat([source.val.labels, source.test.labels]),
    )
    tasks = make_tasks(replace(source, val=both))
    assert tasks.val.counts == (len(source.val.labels),)
    copied = Images(*map(torch.cat, zip(source.train, source.val, strict=True)))
    tasks = make_tasks(replace(source, train=copied))
    assert tasks.copies_dropped == len(source.val.labels)


def test_validation_images_of_a_class_that_is_not_trained_on(fill):
    root = fill("train/t/x", "train/t/y", "test/t/x", "test/t/y", "val/t/x", "val/t/z")
    with pytest.raises(ValueError, match=r"class 'z' of task 't' is in .*val and not in .*train"):
        load_folder(root)


def test_parts_that_disagree(fill):
    root = fill("train/t/x", "train/t/y", "train/u/x", "train/u/y", "test/t/x")
    with pytest.raises(ValueError, match=r"task 'u' has no images in .*test"):
        load_folder(root)
    fill("test/u/x", "test/u/new")
    with pytest.raises(
        ValueError, match=r"class 'new' of task 'u' is in .*test and not in .*train"
    ):
        load_folder(root)
    fill("train/u/new", "test/v/x")
    with pytest.raises(ValueError, match=r"task 'v' has no images in .*train"):
        load_folder(root)


def test_nothing_to_test_on(fill):
    with pytest.raises(ValueError, match=r"no class in .* has two different images"):
        load_folder(fill("t/x", "t/y", n=1))


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_unreadable_image_is_named(fill, content):
    root = fill("t/x", "t/y", shape=(40, 40))
    path = root / "t" / "y" / "bad.png"
    half = (root / "t" / "y" / "0.png").read_bytes()[:800]
    path.write_bytes(half if content == "half" else content)
    with pytest.raises(ValueError, match=r"cannot read image .*bad.png"):
        load_folder(root)


@pytest.mark.parametrize("size", [(8,), (8, 8, 3)])
def test_image_size_of_the_wrong_length(fill, size):
    with pytest.raises(ValueError, match=r"`image_size` must be a number or .height, width., got"):
        load_folder(fill("t/x", "t/y"), image_size=size)


@pytest.mark.parametrize("size", [0, (8, -1)])
def test_image_size_below_one(fill, size):
    with pytest.raises(ValueError, match=r"`image_size` must be at least 1, got"):
        load_folder(fill("t/x", "t/y"), image_size=size)


def test_negative_seed(fill):
    with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -1"):
        load_folder(fill("t/x", "t/y"), seed=-1)


def test_classes_alone_lack_the_folder_of_their_task(fill):
    with pytest.raises(
        ValueError, match=r"expected <task>/.*; put <class>/\*.png into a folder of"
    ):
        load_folder(fill("boot", "clog"))


@pytest.mark.parametrize("folders", [("t/x", "t/y"), ("t/y",)])
def test_formats_that_are_not_read(fill, folders):
    fill("t/x")
    for folder in folders:
        for path in fill(folder).joinpath(folder).iterdir():
            path.rename(path.with_suffix(".bmp"))
    with (
        pytest.warns(UserWarning, match=rf"ignored: .*0\.bmp and {5 * len(folders) - 1} more;"),
        pytest.raises(ValueError, match=r"has no images.*; PNG, JPEG and WebP are read$"),
    ):
        load_folder(fill())


def test_every_task_needs_test_images(fill):
    root = fill("train/t/x", "train/t/y", "train/u/x", "train/u/y", "test/t/x")
    with pytest.raises(ValueError, match=r"every task needs some in train/ and in test/"):
        load_folder(root)


def test_pictures_of_other_formats_are_told_and_files_that_are_no_pictures_not(fill):
    root = fill("t/x", "t/y")
    (root / "t" / "x" / "notes.txt").write_text("no picture")
    assert len(load_folder(root).train.labels) == 8
    for place in ("t/x/1.TIF", "t/2.heic", "3.gif"):
        (root / place).touch()
    with pytest.warns(UserWarning, match=r"^images in other formats .* and 2 more; PNG, JPEG and"):
        assert len(load_folder(root).train.labels) == 8


def test_parts_in_capitals_are_told(fill):
    root = fill("Train/t/x", "Train/t/y", "TEST/t/x", "TEST/t/y")
    with pytest.raises(ValueError, match=r"has TEST/ and Train/; name them train/ and test/, in"):
        load_folder(root)


def test_tasks_may_be_called_like_parts_in_capitals(fill):
    root = fill("Train/x", "Train/y", "Car/x", "Car/y")
    assert make_tasks(load_folder(root)).names == ("Car", "Train")


@pytest.mark.parametrize("place", ["t\udcff/x", "t/\udcff"])
def test_names_that_are_no_text_are_refused(fill, place):
    root = fill("t/x", "t/y", place)
    with pytest.raises(ValueError, match=r"is not named in UTF-8, as a task or class must be"):
        load_folder(root)


def test_names_may_be_any_text(fill):
    names = ["=1+1", "\x1b[31m", "two\nlines", " ", "é" * 100]
    root = fill(*(f"t/{name}" for name in names))
    assert sorted(make_tasks(load_folder(root)).classes[0]) == sorted(names)


def test_a_pipe_among_the_images_is_named(fill):
    root = fill("t/x", "t/y")
    os.mkfifo(root / "t" / "x" / "pipe.png")
    with pytest.raises(ValueError, match=r"cannot read image .*pipe.png: it is not a regular file"):
        load_folder(root)


@pytest.mark.parametrize("size", [8193, 10**30])
def test_sizes_that_no_picture_has(fill, size):
    with pytest.raises(ValueError, match=r"`image_size` must be at most 8192, got"):
        load_folder(fill("t/x", "t/y"), image_size=size)


def test_a_picture_that_is_cut_short_is_named(fill):
    root = fill("t/x", "t/y")
    path = root / "t" / "y" / "3.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read image .*t/y/3.png: "):
        load_folder(root)
