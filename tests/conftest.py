from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Neither the examples nor the verdict may depend on the run or on the speed of the machine.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")

# Triton's interpreter runs the kernels for a GPU where there is none. Triton reads this when it is
# first imported, which PyTorch may do in any test.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Fixtures that take seconds in every test, or minutes in the first.
SLOW_FIXTURES = {"commands", "described", "finished_study"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-faults",
        metavar="FILE",
        type=lambda name: Path(name).resolve(),  # tests may change the directory
        help="run tests/faults with their full numbers of trials; append their figures to FILE",
    )


def pytest_configure() -> None:
    # Shells let background jobs ignore Ctrl-C, which tests send to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if config.getoption("--full-faults"):
            item.add_marker(pytest.mark.timeout(0))  # no limit: full trials take hours


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seed the fixtures that several tests share, whichever test asks for them first."""
    if fixturedef.scope != "function":
        _seed()


class CountedTime:
    """A clock that moves on whenever it is read, which adaptation does at least once an update.

    So how much is done for a new task does not depend on the machine.
    """

    def __init__(self) -> None:
        self._readings = 0

    def perf_counter(self) -> float:
        self._readings += 1
        return 0.125 * self._readings  # exact, so that no test depends on those before it


@pytest.fixture(scope="session", autouse=True)
def _counted_time() -> Iterator[None]:
    """Let adaptation count its updates instead of seconds."""
    from sparsehyper import adaptation

    clock = CountedTime()
    with pytest.MonkeyPatch.context() as patch:
        for found in pkgutil.iter_modules(adaptation.__path__, f"{adaptation.__name__}."):
            module = importlib.import_module(found.name)
            if hasattr(module, "time"):
                patch.setattr(module, "time", clock)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed every test."""
    _seed()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # where `torch.manual_seed` keeps a call for each kind of device that is not there
        torch.default_generator.manual_seed(0)


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``trials(quick, full)``: the number of trials that a test makes."""
    full = request.config.getoption("--full-faults") is not None
    return lambda quick, many: many if full else quick


@pytest.fixture
def record_figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record_figures(promise, tried=…, wrong=…)``: figures for docs/reliability.md."""
    file = request.config.getoption("--full-faults")

    def record(promise: str, **figures: Any) -> None:
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps({"promise": promise, **figures}) + "\n")

    return record
