"""Hand-written characters from their zip file."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from sparsehyper.lab.data import Alphabets, load_source, make_tasks
from sparsehyper.lab.data.characters import ARCHIVE, CHARACTERS


def _drawing(seed, shape=(105, 105)):
    """White paper with some black ink, as a PNG of one bit."""
    ink = np.random.default_rng(seed).random(shape) < 0.1
    buffer = io.BytesIO()
    Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def _write(data_dir, alphabets=("Greek", "Early_Aramaic"), characters=6, drawings=5):
    folder = data_dir / CHARACTERS
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        archive.writestr("top/read me.txt", "not a drawing")
        seed = 0
        for alphabet in alphabets:
            for character in range(characters):
                for drawing in range(drawings):
                    name = f"top/{alphabet}/character{character:02}/{drawing}.png"
                    archive.writestr(name, _drawing(seed))
                    seed += 1
    return folder / ARCHIVE


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("SPARSEHYPER_DATA", raising=False)


def test_classes_are_characters_and_a_fifth_of_each_is_tested(tmp_path):
    _write(tmp_path)
    source = load_source(CHARACTERS, tmp_path)
    assert source.classes[0] == "Early_Aramaic_character00"
    assert source.classes[-1] == "Greek_character05"
    assert source.image_shape == (1, 28, 28)
    assert source.train.labels.bincount().tolist() == [4] * 12
    assert source.test.labels.bincount().tolist() == [1] * 12
    # ink is bright, and there is less of it than of paper
    assert 0 < source.train.pixels.float().mean() < 100


def test_a_drawing_that_tasks_share_is_never_in_training_and_test(tmp_path):
    _write(tmp_path)
    tasks = make_tasks(load_source(CHARACTERS, tmp_path), Alphabets(6), val_fraction=0.25)
    seen = {part: set() for part in ("train", "val", "test")}
    for part, drawings in seen.items():
        split = getattr(tasks, part)
        for task in range(len(tasks.names)):
            for batch in split.batches(task, 100):
                drawings.update(image.numpy().tobytes() for image in batch.x)
    assert all(seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]


def test_without_the_file_the_error_says_where_it_belongs(tmp_path):
    where = rf"`data_dir` \(--data-dir, SPARSEHYPER_DATA\) that holds {CHARACTERS}/{ARCHIVE}"
    with pytest.raises(FileNotFoundError, match=rf"is not set. Give a {where}"):
        load_source(CHARACTERS)
    with pytest.raises(FileNotFoundError, match=rf"there is no {tmp_path}.*{where}"):
        load_source(CHARACTERS, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no zip", "bad png", "empty", "flat"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = _write(tmp_path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no zip":
        path.write_bytes(b"PK not a zip")
    else:
        names = {"bad png": "a/b/c.png", "empty": "a/b/c.txt", "flat": "c.png"}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(names[damage], "no picture")
    with pytest.raises(ValueError, match=str(path)):
        load_source(CHARACTERS, tmp_path)


def test_flipped_bytes_never_give_another_error(tmp_path):
    path = _write(tmp_path, characters=2, drawings=2)
    content = bytearray(path.read_bytes())
    errors = []
    for place in range(0, len(content), 37):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_source(CHARACTERS, tmp_path)
        except ValueError as error:
            errors.append(str(error))
    assert errors
    assert all(str(path) in error for error in errors)
