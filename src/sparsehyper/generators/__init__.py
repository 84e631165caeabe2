"""Generators: from an embedding to the flat parameter vector, one file per kind."""

from __future__ import annotations

from typing import Any

from sparsehyper._util.checks import check_type, read_kind
from sparsehyper.generators.base import Generator
from sparsehyper.generators.butterfly import Butterfly
from sparsehyper.generators.chunked import CHUNKINGS, Chunked
from sparsehyper.generators.composed import Composed
from sparsehyper.generators.dense import Dense
from sparsehyper.generators.low_rank import LowRank
from sparsehyper.generators.sparse import ACTIVATIONS, Sparse

GENERATORS: dict[str, type[Generator]] = {
    g.kind: g for g in (Sparse, Chunked, Dense, Butterfly, LowRank, Composed)
}

__all__ = [
    "ACTIVATIONS",
    "CHUNKINGS",
    "GENERATORS",
    "Butterfly",
    "Chunked",
    "Composed",
    "Dense",
    "Generator",
    "LowRank",
    "Sparse",
    "generator_from_config",
    "parse_generator",
]


def generator_from_config(config: dict[str, Any]) -> Generator:
    """The inverse of ``Generator.to_config``.

    Raises:
        ValueError: an unknown kind or setting, naming the valid ones.

    >>> generator_from_config({"kind": "sparse", "growth": 8.0})
    Sparse(fan_in='linear', growth=8.0, topology='circulant', ...)
    """
    kind, settings = read_kind("generator", config, GENERATORS)
    if isinstance(settings.get("of"), dict):
        settings["of"] = generator_from_config(settings["of"])
    if "parts" in settings:
        settings["parts"] = [
            (pattern, generator_from_config(part)) for pattern, part in settings["parts"]
        ]
    return kind(**settings)


def parse_generator(text: str) -> Generator:
    """Parse a generator as the command line writes it: ``KIND`` or ``KIND:setting=value,…``.

    A slash separates a low-rank generator from the generator ``of`` its factors.

    Raises:
        TypeError, ValueError: an unknown kind, setting or value.

    >>> parse_generator("chunked:chunks=8")
    Chunked(chunks=8, hidden=None, by='flat', layers=2, embedding=None)
    >>> parse_generator("low_rank:rank=2/dense").of
    Dense(hidden=None)
    """
    check_type("generator", text, str, "a string such as 'sparse:growth=8'")
    text, slash, inner = text.partition("/")
    kind, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    if slash:
        settings["of"] = parse_generator(inner).to_config()
    if kind == Composed.kind:
        raise ValueError(f"`generator` {kind!r} has parts, which only Python can give")
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(
                f"`generator` settings are written name=value, got {item!r} in {text!r}"
            )
        settings[name.strip()] = _value(value.strip())
    try:
        return generator_from_config({"kind": kind, **settings})
    except (TypeError, ValueError) as error:
        if not rest:
            raise
        raise type(error)(f"{error}, in {kind}:{rest}") from error


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    # "none" stays text, since it names an activation; settings that may be None can be left out.
    return text if text == "none" else constants.get(text.lower(), text)
