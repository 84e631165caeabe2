"""Conditioners: from a task, an input or examples to the embedding z."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehyper._util.checks import check_choice
from sparsehyper.conditioning.base import Condition, Conditioner, TaskConditioner
from sparsehyper.conditioning.examples import TaskExamples
from sparsehyper.conditioning.features import TaskFeatures
from sparsehyper.conditioning.inputs import InputAndTask, InputEncoder, Noise
from sparsehyper.conditioning.support import SupportSet
from sparsehyper.conditioning.tasks import TaskEmbedding

CONDITIONERS: dict[str, type[Conditioner]] = {
    c.kind: c
    for c in (
        *(TaskEmbedding, TaskFeatures, TaskExamples),
        *(InputEncoder, InputAndTask, SupportSet, Noise),
    )
}

__all__ = [
    "CONDITIONERS",
    "Condition",
    "Conditioner",
    "InputAndTask",
    "InputEncoder",
    "Noise",
    "SupportSet",
    "TaskConditioner",
    "TaskEmbedding",
    "TaskExamples",
    "TaskFeatures",
    "conditioner_from_config",
]


def conditioner_from_config(config: Mapping[str, Any]) -> Conditioner:
    """A conditioner like the one that ``to_config`` described, with initial values.

    Raises:
        ValueError: an unknown kind, or one that holds a network of the user.

    >>> conditioner_from_config({"kind": "noise", "dim": 8, "per": "batch"})
    Noise(dim=8)
    """
    settings = dict(config)
    kind = settings.pop("kind", None)
    check_choice("conditioner", kind, CONDITIONERS)
    if CONDITIONERS[kind].networks:
        raise ValueError(
            f"a conditioner of kind {kind!r} holds a network of its own; give a `conditioner` like "
            "the one that was saved"
        )
    return CONDITIONERS[kind].from_config(settings)
