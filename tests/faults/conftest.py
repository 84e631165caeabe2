import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.faults import commands as helper
from helpers.faults.cases import Case, all_cases
from helpers.faults.commands import QUICK, Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Iterator[Commands]:
    """Runs commands in processes of their own, in which what they write can go wrong."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("commands")
    source, library = Path(helper.__file__).with_name("faults.c"), folder / "faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    running = Commands(folder, library)
    yield running
    running.close()


@pytest.fixture(scope="session")
def base(commands, tmp_path_factory) -> Path:
    """A small run. Not to be changed."""
    out = tmp_path_factory.mktemp("base") / "run"
    done = commands.run("train", "--out", out, *QUICK)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A new task of two classes, 6 grey 8 × 8 images each, darker for the second."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    for shade, name in ((60, "new"), (190, "worn")):
        (root / "hats" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(shade - 40, shade + 40, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "hats" / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def cases(base, images) -> dict[str, Case]:
    """Commands that write something, by name."""
    return all_cases(base, images)
