"""Cells are computed by other machines as by this one."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import helpers
from helpers.process_calls import half, pid_or_death, touch
from sparsehyper._util.extras import MissingExtraError
from sparsehyper.lab.studies import engines
from sparsehyper.lab.studies.cells import Cell, read_cells, run_cells
from sparsehyper.lab.studies.engines import calls_by, check_engine
from sparsehyper.training.isolation import DiedError

FOUR = [Cell(f"cell-{i}", {"i": i}) for i in range(4)]


def jobs_by(cluster, monkeypatch):
    """SLURM's jobs are run by another of submitit's executors."""
    pytest.importorskip("submitit")
    to_slurm = engines._to_slurm

    def to_other(asked, folder, settings):
        assert asked == "slurm"
        return to_slurm(cluster, folder, settings)

    monkeypatch.setattr(engines, "_to_slurm", to_other)
    monkeypatch.setattr(engines, "_POLL_SECONDS", 0.05)
    importable_by_jobs(monkeypatch)


def importable_by_jobs(monkeypatch):
    tests = str(Path(helpers.__path__[0]).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_cells_by_jobs_are_those_by_processes(tmp_path, monkeypatch):
    jobs_by("debug", monkeypatch)  # in this process, when its result is asked for
    threads = torch.get_num_threads()
    here = run_cells(FOUR[1:], half, tmp_path / "a", tmp_path, workers=2, quiet=True)
    engine = {"workers": 2, "engine": "slurm:partition=long,time=5,mem=1", "quiet": True}
    try:
        assert run_cells(FOUR[1:], half, tmp_path / "b", tmp_path, **engine) == here
        assert os.listdir(tmp_path / "b") == os.listdir(tmp_path / "a")
        with pytest.raises(RuntimeError, match=r"1 of 1 cells failed.* cell-0: ZeroDivisionError"):
            run_cells(FOUR, half, tmp_path / "b", tmp_path, **engine)
    finally:
        torch.set_num_threads(threads)
    assert read_cells(tmp_path / "b") == here


@pytest.mark.slow
def test_jobs_are_processes_and_one_that_dies_is_told(tmp_path, monkeypatch):
    jobs_by("local", monkeypatch)
    arguments = [(True,), (False,)]
    with closing(calls_by("slurm", pid_or_death, arguments, tmp_path, workers=2)) as outcomes:
        found = dict(outcomes)
    assert isinstance(found[0], DiedError)
    assert "the job died: " in str(found[0])
    assert found[1] != os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_slurm_job_asks_for_what_was_given(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    asked = {}

    class Executor:
        def __init__(self, folder, cluster):
            asked["cluster"] = cluster

        def update_parameters(self, **settings):
            asked.update(settings)

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    with closing(calls_by("slurm:gpus=1,mem=8,qos=q", touch, [], tmp_path, workers=1)) as outcomes:
        assert list(outcomes) == []
    assert asked == {
        "cluster": "slurm",
        "name": "sparsehyper",
        "cpus_per_task": 1,
        "gpus_per_node": 1,
        "mem_gb": 8,
        "timeout_min": 1440,
        "slurm_qos": "q",
    }


class Ray(ModuleType):
    """Ray, whose tasks are done when they are asked for."""

    def __init__(self):
        super().__init__("ray")
        self.log: list[object] = []

    def is_initialized(self):
        return False

    def init(self, **settings):
        self.log.append(settings)

    def shutdown(self):
        self.log.append("shutdown")

    def remote(self, **options):
        self.log.append(options)

        def task(function):
            return SimpleNamespace(remote=lambda *args: partial(function, *args))

        return task

    def wait(self, refs, timeout):
        assert timeout == 0
        return refs, []

    def get(self, ref):
        return ref()


def test_cells_by_ray_are_those_by_processes(tmp_path, monkeypatch):
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    threads = torch.get_num_threads()
    here = run_cells(FOUR[1:], half, tmp_path / "a", tmp_path, workers=2, quiet=True)
    engine = {"workers": 2, "engine": "ray:address=head:6379,mem=2,gpus=1", "quiet": True}
    try:
        assert run_cells(FOUR[1:], half, tmp_path / "b", tmp_path, **engine) == here
    finally:
        torch.set_num_threads(threads)
    connected, asked, ended = ray.log
    assert connected == {"address": "head:6379", "log_to_driver": False}
    assert asked["num_gpus"] == 1
    assert asked["memory"] == 2 * 2**30
    assert ended == "shutdown"


@pytest.mark.slow
def test_tasks_of_ray_are_processes_and_one_that_dies_is_told(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    importable_by_jobs(monkeypatch)
    arguments = [(True,), (False,)]
    with closing(calls_by("ray", pid_or_death, arguments, tmp_path, workers=2)) as outcomes:
        found = dict(outcomes)
    assert isinstance(found[0], DiedError)
    assert found[1] != os.getpid()
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("pbs", "`engine` must be one of 'local', 'slurm', 'ray'; got 'pbs'"),
        ("ray:time=5", "`engine` 'ray' takes settings such as address=….*'time=5'"),
        ("slurm:queue=gpu", "`engine` 'slurm' takes settings such as partition=….*'queue=gpu'"),
        ("slurm:time=1h", "`engine` must have a whole number for 'time', got '1h'"),
        ("local:time=1", "`engine` 'local' takes none, got 'time=1'"),
    ],
)
def test_an_unknown_engine_or_setting_is_refused(tmp_path, engine, message):
    with pytest.raises(ValueError, match=message):
        check_engine(engine)
    with pytest.raises(ValueError, match="`engine`"):
        run_cells(FOUR, touch, tmp_path / "s", tmp_path, engine=engine, quiet=True)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("engine", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_that_is_not_installed(tmp_path, monkeypatch, engine, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"sparsehyper\[{engine}\]"):
        run_cells(FOUR, touch, tmp_path / "s", tmp_path, engine=engine, quiet=True)
