"""Files that are written whole go to no place that a stranger chose."""

from __future__ import annotations

import os

import pytest

from sparsehyper._util.files import replaced, whole


def test_a_planted_temporary_file_is_not_written_through(tmp_path):
    mine, path = tmp_path / "mine", tmp_path / "results.md"
    mine.write_text("kept")
    (tmp_path / "results.md.new").symlink_to(mine)
    with replaced(path) as file:
        file.write(b"new")
    assert mine.read_text() == "kept"
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["mine", "results.md"]


def test_a_planted_pipe_does_not_hang_the_writer(tmp_path):
    os.mkfifo(tmp_path / "results.md.new")
    with replaced(tmp_path / "results.md") as file:
        file.write(b"new")
    assert (tmp_path / "results.md").read_text() == "new"


def test_a_file_that_could_not_be_written_is_left_as_it_was(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("old")

    def fail():
        with replaced(path) as file:
            file.write(b"new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.md"]


def test_links_and_pipes_in_a_new_directory_are_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.touch()
    mine.chmod(0o600)
    with whole("out", tmp_path / "new") as partial:
        partial.mkdir()
        (partial / "link").symlink_to(mine)
        os.mkfifo(partial / "pipe", 0o600)
    assert mine.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "pipe").stat().st_mode & 0o777 == 0o600


def test_a_dangling_link_is_something_that_exists(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    with (
        pytest.raises(FileExistsError, match=r"`out` .*out' exists"),
        whole("out", tmp_path / "out"),
    ):
        pass
