"""Settings of the package peft, which need not be installed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sparsehyper.target.adapters.layers import Layers

# Settings that change nothing here: where a model comes from, and how peft goes about it.
_IGNORED = frozenset(
    [
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
        *("runtime_config", "ensure_weight_tying"),
    ]
)
_USED = frozenset(
    [
        *("peft_type", "r", "lora_alpha", "target_modules", "exclude_modules"),
        *("use_rslora", "use_dora", "bias", "init_lora_weights"),
    ]
)
_STARTS = (True, False, "gaussian", "orthogonal")  # others change the weight of the layer, or may
_REMEDIES = {
    "modules_to_save": "call `requires_grad_()` on these modules of what `lora` returns",
    "lora_dropout": "set it to 0; a HyperNetwork has `noise` and `dropout` of embeddings",
    "rank_pattern": "adapt layers of each rank by a call of `lora` of their own",
    "alpha_pattern": "adapt layers of each alpha by a call of `lora` of their own",
}


class Settings(NamedTuple):
    """What `lora` needs to know of a ``LoraConfig``."""

    rank: int
    layers: Layers
    alpha: float
    rslora: bool
    dora: bool


def settings_of(config: Any) -> Settings:
    """The settings of a ``peft.LoraConfig``, or of the contents of an ``adapter_config.json``.

    Layers become a regular expression that matches the layers that peft would find. With an
    attention that is its output projection too, as in peft.

    Raises:
        TypeError: ``config`` is neither.
        ValueError: the settings of another method, or a setting with no counterpart here.
    """
    fields = check_settings_of(config)
    targets, excluded = fields.get("target_modules"), fields.get("exclude_modules")
    if not targets:
        raise ValueError(
            "`target_modules` of the LoraConfig is not set, for which peft has a choice by model; "
            "name the layers"
        )
    layers: Layers = "all-linear"
    if not isinstance(targets, str) or targets.lower() != "all-linear":
        without = f"(?!(?:{_expression(excluded)})$)" if excluded else ""
        layers = re.compile(rf"{without}(?:{_expression(targets)})(?:\.out_proj)?")
    elif excluded:
        raise ValueError(f"`exclude_modules` {excluded!r} cannot be used with 'all-linear'")
    alpha = fields.get("lora_alpha", 8)
    return Settings(
        fields["r"], layers, alpha, bool(fields.get("use_rslora")), bool(fields.get("use_dora"))
    )


def check_settings_of(config: Any, *, allowed: Iterable[str] = ()) -> Mapping[str, Any]:
    """The settings of a ``LoraConfig`` by name; raises as `settings_of`.

    Args:
        config: a ``peft.LoraConfig`` or a mapping.
        allowed: further settings that may have any value.
    """
    to_dict = getattr(config, "to_dict", None)
    fields = to_dict() if callable(to_dict) else config
    if not isinstance(fields, Mapping) or "peft_type" not in fields:
        raise TypeError(f"`rank` must be an integer or a peft.LoraConfig, got {config!r}")
    kind = getattr(fields["peft_type"], "value", fields["peft_type"])
    if kind != "LORA" or "r" not in fields:
        raise ValueError(f"settings of peft must be a LoraConfig, got one of {kind!r}")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"`bias` of the LoraConfig must be 'none', got {fields['bias']!r}")
    start = fields.get("init_lora_weights", True)
    if start not in _STARTS:
        raise ValueError(
            f"`init_lora_weights` {start!r} of the LoraConfig is not known here; A starts from "
            "`seed` and B at zero, so set it to True. peft can write a trained adapter as one of "
            "unchanged weights: `path_initial_model_for_weight_conversion` of `save_pretrained`"
        )
    for name, value in fields.items():
        if value and name not in _IGNORED | _USED | set(allowed):
            remedy = _REMEDIES.get(name, "leave it at its default")
            raise ValueError(f"`{name}` {value!r} of the LoraConfig is not known here; {remedy}")
    return fields


def _expression(targets: str | Iterable[str]) -> str:
    """Names as peft matches them: a string is a regular expression, the others end a name."""
    if isinstance(targets, str):
        return targets
    return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(targets)))})"
