from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")

HANG = 2400  # seconds, far beyond what any test of tests/faults needs in full


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-faults",
        metavar="FILE",
        type=Path,
        help="run tests/faults with their full numbers of trials; append their figures to FILE",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full-faults"):
        for item in items:
            item.add_marker(pytest.mark.timeout(HANG))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``trials(quick, full)``: how many trials a test of a promise makes."""
    full = request.config.getoption("--full-faults") is not None
    return lambda quick, many: many if full else quick


@pytest.fixture
def record_figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record_figures(promise, tried=…, wrong=…)``: kept for docs/reliability.md in full runs."""
    file = request.config.getoption("--full-faults")

    def record(promise: str, **figures: Any) -> None:
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps({"promise": promise, **figures}) + "\n")

    return record
