"""Folders of images for a model that exists."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsehyper.lab.data import find_images, load_images, load_new_tasks


def write(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size if mode == "L" else (*size, 3), value, np.uint8)
    if mode != "L":
        pixels[..., 0] = 255 - value
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for task in ("bags", "hats"):
        for i, name in enumerate(("new", "worn")):
            for j in range(3):
                write(tmp_path / "all" / task / name / f"{j}.png", 50 * i + j)
    return tmp_path / "all"


def test_every_image_is_kept(root):
    bags, hats = load_new_tasks(root, (1, 8, 8))
    assert (bags.name, hats.name, hats.classes, hats.test) == (
        "bags",
        "hats",
        ("new", "worn"),
        None,
    )
    assert bags.train.pixels.dtype == torch.uint8
    assert bags.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 51, 52]
    assert bags.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_one_task(root):
    (one,) = load_new_tasks(root / "bags", (1, 8, 8), task="satchels")
    assert (one.name, one.classes, len(one.train.labels)) == ("satchels", ("new", "worn"), 6)


def test_test_images_have_the_labels_of_the_training_classes(root, tmp_path):
    (root / "hats").rename(tmp_path / "train")
    write(tmp_path / "test" / "worn" / "0.png", 99)
    (tmp_path / "all" / "bags").rename(tmp_path / "gone")
    (tmp_path / "all").rmdir()
    (tmp_path / "gone").rename(tmp_path.parent / "elsewhere")
    (one,) = load_new_tasks(tmp_path, (1, 8, 8), task="hats")
    assert len(one.train.labels) == 6
    assert one.test.labels.tolist() == [1]
    assert int(one.test.pixels[0, 0, 0, 0]) == 99


def test_sizes_and_colours(tmp_path):
    small, colour = write(tmp_path / "a.png", 7, (4, 6)), write(tmp_path / "b.png", 9, mode="RGB")
    grey = write(tmp_path / "c.png", 5)
    assert load_images([grey, colour], (3, 8, 8)).shape == (2, 3, 8, 8)
    assert load_images([small], (1, 8, 8), resize=True).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"a.png is 4 × 6 .* takes 8 × 8"):
        load_images([grey, small], (1, 8, 8))
    with pytest.raises(ValueError, match=r"b.png is in colour, the model takes grey"):
        load_images([grey, colour], (1, 8, 8))
    with pytest.raises(ValueError, match="the model takes 4"):
        load_images([grey], (4, 8, 8))
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*d.png"):
        load_images([tmp_path / "d.png"], (1, 8, 8))


@pytest.mark.parametrize(
    ("prepare", "task", "message"),
    [
        (lambda r: (r / "bags" / "new").rename(r.parent / "x"), None, "has one class, 'worn'"),
        (lambda r: (r / "bags" / "new").rename(r.parent / "x"), "b", "'b' in .* has one class"),
        (lambda r: [p.unlink() for p in r.rglob("*.png")], None, "'bags' in .* has no images"),
        (lambda r: [p.unlink() for p in r.rglob("*.png")], "b", r"no images; expected <class>/\*"),
    ],
)
def test_refuses(root, prepare, task, message):
    prepare(root)
    with pytest.raises(ValueError, match=message):
        load_new_tasks(root if task is None else root / "bags", (1, 8, 8), task=task)


def test_refuses_what_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nothing"):
        load_new_tasks(tmp_path / "nothing", (1, 8, 8))


def test_find_images_looks_below_and_leaves_hidden_files_out(root):
    write(root / ".hidden.png")
    (root / "notes.txt").write_text("no image")
    assert len(find_images(root)) == 12


def test_formats_that_are_not_read(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.bmp")
    with pytest.raises(
        ValueError, match=r"cannot read image .*a.bmp: it is not a PNG, JPEG or WebP image"
    ):
        load_images([tmp_path / "a.bmp"], (1, 8, 8))


def test_links_that_lead_round_in_a_ring_are_followed_once(root):
    for folder in (root, root / "bags"):
        for name in ("one", "two"):
            (folder / name).symlink_to(root)
    assert len(find_images(root)) == 12
    assert len(set(find_images(root / "**" / "*.png"))) == 12
    assert len(set(find_images(f"{root}/**"))) == 12


def test_a_link_to_images_elsewhere_is_followed(root, tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert len(find_images(root)) == 14


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("*/*/*.png", 12),
        ("**/new/*.png", 6),
        ("bags/**", 6),
        ("**/[a-n]*/0.png", 2),
        ("b*/**/**/?.png", 6),
    ],
)
def test_globs(root, monkeypatch, pattern, count):
    for start, place in ((root, pattern), (root.parent, f"{root}/{pattern}")):
        monkeypatch.chdir(start)
        found = find_images(place)
        assert len(set(found)) == count
        assert all(path.is_file() for path in found)


def test_a_name_with_the_signs_of_a_glob_is_the_file_itself(root):
    assert find_images(write(root / "[ab]*.png")) == [root / "[ab]*.png"]


def test_images_of_other_formats_that_are_searched_through(root):
    (root / "new.tif").touch()
    with pytest.warns(UserWarning, match=r"ignored: .*new.tif; PNG, JPEG and WebP are read$"):
        assert len(find_images(root)) == 12


def test_images_that_are_tested_on_are_not_learned_from(root, tmp_path):
    (root / "hats").rename(tmp_path / "train")
    for name, value in (("new", 1), ("worn", 99)):
        write(tmp_path / "test" / name / "0.png", value)
    shutil.rmtree(tmp_path / "all")
    with pytest.warns(UserWarning, match="'hats' is learned without 1 images that are among its"):
        (one,) = load_new_tasks(tmp_path, (1, 8, 8), task="hats")
    assert one.train.pixels[:, 0, 0, 0].tolist() == [0, 2, 50, 51, 52]
    for value in (0, 2):
        write(tmp_path / "test" / "new" / f"too{value}.png", value)
    with pytest.raises(ValueError, match="class 'new' of task 'hats' has no image to learn from"):
        load_new_tasks(tmp_path, (1, 8, 8), task="hats")
