import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.faults import commands as helper
from helpers.faults.cases import Case, all_cases
from helpers.faults.commands import QUICK, Commands
from helpers.pictures import write_task


@pytest.fixture(scope="session")
def starter(tmp_path_factory) -> Iterator[Commands]:
    """Runs commands in processes of their own, and makes their writes fail."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("commands")
    source, library = Path(helper.__file__).with_name("faults.c"), folder / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    running = Commands(folder, library)
    yield running
    running.close()


@pytest.fixture
def commands(starter) -> Iterator[Commands]:
    """The same, for one test: a command that it leaves running ends with it."""
    yield starter
    starter.stop_all()


@pytest.fixture(scope="session")
def base(starter, tmp_path_factory) -> Path:
    """A small run; do not change it."""
    out = tmp_path_factory.mktemp("base") / "run"
    done = starter.run("train", "--out", out, *QUICK)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A new task, hats, of two classes."""
    root = tmp_path_factory.mktemp("images")
    write_task(root / "hats", {"new": 60, "worn": 190}, count=6)
    return root


@pytest.fixture(scope="session")
def cases(base, images) -> dict[str, Case]:
    """Commands that write something, by name."""
    return all_cases(base, images)
