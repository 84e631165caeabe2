"""Opening a file runs nothing, and opens no other file."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from helpers import environment
from helpers.faults import open_hostile
from helpers.faults.runs import make_runs

STRIDE = 61  # has no common divisor with the number of commands


def test_nothing_in_a_file_is_executed_or_followed(tmp_path, trials, record_figures):
    runs, work = tmp_path / "runs", tmp_path / "work"
    work.mkdir()
    make_runs(runs)
    code = (
        "from pathlib import Path; from helpers.faults import open_hostile\n"
        f"open_hostile.main(Path({str(runs)!r}), Path({str(work)!r}), {trials(STRIDE, 3)})"
    )
    path = os.pathsep.join([str(work), environment()["PYTHONPATH"]])  # finds the hostile module
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tried"] > 70
    assert found["noted"] == []
    assert found["markers"] == []
    assert found["secret"] == ["of others\n", 0o600]
    assert found["failures"] == []
    executable = [what for what in found["accepted"] if what.startswith("config: target")]
    assert executable == []
    record_figures("opening a file runs nothing", tried=found["tried"], executed=0)


def test_the_hook_sees_what_it_looks_for(commands, tmp_path):
    """The absence of findings means something only if the hook would have them."""
    code = (
        "import pickle, os, sys, subprocess; from pathlib import Path\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "import helpers.faults.open_hostile as o\n"
        "secret = Path('secret'); secret.touch()\n"
        "Path('own').mkdir(); noted = o.watch(secret, Path('own'))\n"
        "pickle.loads(pickle.dumps(o.Executes())); subprocess.run(['true'])\n"
        "open(secret); Path('other').touch(); os.link('other', 'own/other')\n"
        "Path('own/link').symlink_to('../other'); Path('own/link').chmod(0o644)\n"
        "Path('own/link').write_text('x'); Path('own/new').write_text('x')\n"
        "try: import hostile_module\n"
        "except ImportError: pass\n"
        "print('\\n'.join(noted))\n"
    )
    done = commands.run(setup=code)
    for word in (
        *("pickle.find_class", "os.system", "subprocess.Popen", "open secret", "import hos"),
        *("open other", "os.link other", "os.chmod own/link", "open own/link"),
    ):
        assert word in done.out, done.err
    assert "own/new" not in done.out


@pytest.mark.parametrize("name", ["pickle", "torch.save"])
def test_the_archives_would_execute(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO(open_hostile.archives(tmp_path)[name])
    if name == "pickle":
        pickle.load(content)
    else:
        torch.load(content, weights_only=False)
    assert (tmp_path / open_hostile.MARKER).exists()
