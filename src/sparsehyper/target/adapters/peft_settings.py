"""Settings of the package peft, which need not be installed."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsehyper.target.adapters.layers import Layers


class Settings(NamedTuple):
    """What `lora` needs to know of a ``LoraConfig``."""

    rank: int
    layers: Layers
    alpha: float
    rslora: bool
    dora: bool


def settings_of(config: Any) -> Settings:
    raise TypeError(f"`rank` must be an integer, got {config!r}")
