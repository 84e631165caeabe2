"""Task makers from configurations and from the command line's short forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehyper._util.checks import check_choice, check_type, read_kind
from sparsehyper.lab.data.makers import Alphabets, Hue, Permuted, Rotated, Split, TaskMaker

TASK_MAKERS: dict[str, type[TaskMaker]] = {
    m.kind: m for m in (Split, Permuted, Rotated, Hue, Alphabets)
}

_FORMS = (
    "split:2  split:2,all  split:0-1,2-3  permuted:10  permuted:10,seed=1  rotated:8  "
    "rotated:0,15,30  hue:5  hue:-0.1,0,0.1  split:2/hue:5  alphabets:20  "
    "alphabets:20,ways=10,seed=1"
)

# Kinds of so many tasks, and what may follow the number.
_OPTIONS = {"permuted": ("seed",), "alphabets": ("seed", "ways")}
_VARIATIONS = ("permuted", "rotated", "hue")


def maker_from_config(config: Mapping[str, Any]) -> TaskMaker:
    """Build a task maker from its configuration; the inverse of `TaskMaker.to_config`.

    Raises:
        ValueError: an unknown kind or setting; the message names the valid ones.

    >>> maker_from_config({"kind": "hue", "shifts": [0, 0.5], "of": {"kind": "split"}})
    Hue(shifts=(0.0, 0.5), of=Split(classes=2, combinations=False))
    """
    kind, settings = read_kind("tasks", config, TASK_MAKERS)
    if settings.get("of") is not None:
        settings["of"] = maker_from_config(settings["of"])
    return kind(**settings)


def parse_tasks(text: str) -> TaskMaker:
    """Parse a task maker in the command line's form, ``KIND:NUMBER`` or ``KIND:LIST``.

    A slash joins ``split`` and a variation of it.

    Raises:
        ValueError: an unknown kind or form; the message lists the valid ones.

    >>> parse_tasks("split:0-1,2-3")
    Split(classes=((0, 1), (2, 3)), combinations=False)
    >>> parse_tasks("split:2,all/hue:3").of
    Split(classes=2, combinations=True)
    """
    check_type("tasks", text, str, "a string such as 'split:2'")
    first, slash, second = text.partition("/")
    config = _parse_one(second if slash else first, text)
    if slash:
        base = _parse_one(first, text)
        if base["kind"] != "split" or config["kind"] not in _VARIATIONS:
            raise ValueError(
                f"`tasks` joined by a slash must be a split and a variation of it, got {text!r}; "
                f"forms: {_FORMS}"
            )
        config["of"] = base
    return maker_from_config(config)


def _parse_one(text: str, whole: str) -> dict[str, Any]:
    kind, colon, rest = text.strip().partition(":")
    check_choice("tasks", kind, TASK_MAKERS)
    config: dict[str, Any] = {"kind": kind}
    items = rest.split(",") if colon else []
    try:
        if kind == "split" and items and "-" in rest:
            config["classes"] = [tuple(int(c) for c in item.split("-")) for item in items]
        elif kind == "split" and items:
            number, *options = items
            config["classes"] = int(number)
            if options:
                (option,) = options
                config["combinations"] = {"all": True}[option.strip()]
        elif kind in _OPTIONS and items:
            number, *options = items
            config["n_tasks"] = int(number)
            for option in options:
                name, value = option.split("=")
                allowed = {known: known for known in _OPTIONS[kind] if known not in config}
                config[allowed[name.strip()]] = int(value)
        elif items:
            name = "angles" if kind == "rotated" else "shifts"
            config[name] = int(rest) if len(items) == 1 else [float(item) for item in items]
    except (ValueError, KeyError):
        raise ValueError(
            f"`tasks` {whole!r} is not understood at {text!r}; forms: {_FORMS}"
        ) from None
    return config
