"""Adapter directories of the package peft, out of a hypernetwork and into one.

    adapter_config.json          what the change is, and of which layers
    adapter_model.safetensors    its factors, and modules that belong to the task as a whole

``peft`` need not be installed for either. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsehyper._util.checks import check_number, check_type
from sparsehyper._util.files import CheckpointError, open_file, parse_json, whole
from sparsehyper._util.fingerprints import fingerprints
from sparsehyper._util.modes import evaluation_mode
from sparsehyper.conditioning import Condition
from sparsehyper.hypernetwork import HyperNetwork
from sparsehyper.peft.tensors import to_peft
from sparsehyper.saving import read_tensors, write_tensors
from sparsehyper.target.adapters.layers import is_conv1d
from sparsehyper.target.adapters.low_rank import Change, Dora, changes
from sparsehyper.target.adapters.parametrized import Adapter, parametrizations
from sparsehyper.target.adapters.peft_settings import check_settings_of
from sparsehyper.target.norm_statistics import statistics_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of all names in a file

# Settings of training, ranks, which the tensors' shapes tell, and what is read here.
_ALLOWED = (*("lora_dropout", "rank_pattern", "alpha_pattern", "modules_to_save"),)
_FACTOR = re.compile(
    r"base_model\.model\.(.+?)\.((?:base_layer\.out_proj\.)?lora_[AB]\.weight|lora_embedding_[AB])"
)


@torch.no_grad()
def save_peft(
    hnet: HyperNetwork, task: Condition, directory: str | os.PathLike[str], *, base: str = ""
) -> None:
    """Write the adapter of one task as ``PeftModel.from_pretrained(module, directory)`` reads it.

    The model that peft then makes of the module that was given to `lora` has the same outputs as
    ``hnet.materialize(task)``. What else is generated or trained, such as a last layer, is written
    as peft's ``modules_to_save``.

    Args:
        hnet: a hypernetwork whose target `lora` returned.
        task: as ``hnet.generate`` takes it.
        directory: a new directory; it appears complete or not at all.
        base: name or path of the pretrained model, for ``AutoPeftModel``; by default the one that
            transformers keeps in the model's configuration.

    Raises:
        FileExistsError: ``directory`` exists.
        ValueError: peft has nothing for a layer, such as a transposed convolution, one with a
            forward pass of its own, or one in two places; or for another part of the target: tied
            weights that are generated or trained, batch-norm statistics of each task or of the
            batch, other adapters, or a head in closed form. `HyperNetwork.materialize` works with
            all.

    >>> import tempfile
    >>> from sparsehyper import Sparse, TaskEmbedding
    >>> from sparsehyper.adapters import lora
    >>> module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> hnet = HyperNetwork(lora(module, 2), Sparse(), TaskEmbedding(["shoes", "bags"], 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_peft(hnet, "bags", f"{folder}/bags")
    ...     sorted(path.name for path in Path(folder, "bags").iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    check_type("hnet", hnet, HyperNetwork, "a HyperNetwork")
    target = hnet.target.module
    found = changes(target)
    _check_expressible(hnet, found)
    with evaluation_mode(hnet):
        generated = hnet.generate(task)
    values = {**dict(target.named_parameters()), **generated}
    tensors: dict[str, Tensor] = {}
    scales: dict[str, tuple[int, float]] = {}  # rank and factor of each layer
    for change in found:
        own = {name: values.pop(f"{change.path}.{name}", None) for name in ("A", "B", "magnitude")}
        factors, rank = to_peft(change, **own)  # type: ignore[arg-type]
        tensors.update({f"{change.name}.{name}": tensor for name, tensor in factors.items()})
        scales[change.name] = rank, change.part.factor
    modules = _modules_to_save(hnet, values, generated)
    for module in modules:
        state = {**values, **target.state_dict()}
        tensors.update({name: state[name] for name in state if name.startswith(f"{module}.")})
    config = _config(target, scales)
    config["use_dora"] = isinstance(found[0].part, Dora)
    config["fan_in_fan_out"] = all(is_conv1d(change.layer) for change in found)
    config["base_model_name_or_path"] = base or _name_of(target)
    config["modules_to_save"] = modules or None
    with whole("directory", Path(directory)) as path:
        path.mkdir()
        named = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_tensors(path / WEIGHTS_FILE, named, {"format": "pt"})
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


class Factors(NamedTuple):
    """The factors of one layer's change in a file, as `tensors` lists them.

    Attributes:
        tensors: The tensors, by the ends of their names.
        factor: The change is multiplied by it.
    """

    tensors: dict[str, Tensor]
    factor: float


class Contents(NamedTuple):
    """What an adapter directory holds.

    Attributes:
        layers: The factors, by names of layers.
        others: The tensors of ``modules_to_save``, by their own names.
    """

    layers: dict[str, Factors]
    others: dict[str, Tensor]


def read_peft(directory: str | os.PathLike[str]) -> Contents:
    """The contents of an adapter directory.

    Raises:
        FileNotFoundError: the directory lacks a file.
        CheckpointError: a damaged file.
        ValueError: an adapter of another method, or with biases or settings for which there is
            nothing here.
    """
    folder = Path(directory)
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_file, weights_file):
        if not path.exists():
            raise FileNotFoundError(f"{str(folder)!r} is no adapter of peft: it has no {path.name}")
    config = parse_json(_read(config_file), config_file)
    try:
        config = check_settings_of(config, allowed=_ALLOWED)
        if config.get("use_dora"):
            raise ValueError("`use_dora` is not known here")
        alphas = [
            (_literal(key), key.startswith("^"), alpha)
            for key, alpha in (config.get("alpha_pattern") or {}).items()
        ]
        modules = [f".{name}." for name in config.get("modules_to_save") or ()]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{config_file} cannot be used: {error}") from error
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in read_tensors(_read(weights_file), weights_file).items():
        name = key.removeprefix(PREFIX)
        if factor := _FACTOR.fullmatch(key):
            layers.setdefault(factor[1], {})[factor[2]] = tensor
        elif any(module in f".{name}" for module in modules):
            others[name] = tensor
        else:
            raise CheckpointError(f"{weights_file} cannot be used: {key!r} is no factor of LoRA")
        if (factor and tensor.ndim < 2) or not tensor.numel() or not tensor.isfinite().all():
            raise CheckpointError(f"{weights_file} cannot be used: {key!r} is no finite matrix")
    found = {}
    for layer, tensors in layers.items():
        own = [
            alpha
            for end, whole, alpha in alphas
            if layer == end or (not whole and layer.endswith(f".{end}"))
        ]
        alpha, rank = [*own, config.get("lora_alpha", 8)][0], len(tensors[min(tensors, key=len)])
        check_number("lora_alpha", alpha)
        found[layer] = Factors(tensors, alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return Contents(found, others)


def _read(path: Path) -> bytes:
    with open_file(path, follow_links=True) as file:  # caches of models consist of links
        return file.read()


def _literal(pattern: str) -> str:
    """The name that a pattern stands for; a stranger's regular expression may never end."""
    name = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^"))
    if pattern.removeprefix("^") not in (re.escape(name), name) or re.search(
        r"[*+?|()\[{$^]", name
    ):
        raise ValueError(f"the pattern {pattern!r} is not the name of a layer")
    return name


def _check_expressible(hnet: HyperNetwork, found: list[Change]) -> None:
    """Raise ``ValueError`` if the target has more than changes of low rank, each of one weight."""
    remedy = "; use `materialize`"
    if not found:
        raise ValueError(f"`hnet` must have a target that `lora` returned, got none{remedy}")
    if hnet.head is not None:
        raise ValueError(f"`hnet` has a `head` in closed form, for which peft has nothing{remedy}")
    if names := hnet.target.statistics.names:
        raise ValueError(
            f"`hnet` keeps {names[0]!r} for each task, for which peft has nothing{remedy}"
        )
    if hnet.target.given_statistics and not statistics_of(hnet.target.module):
        raise ValueError(f"batch norms of `hnet` use the batch, for which peft has nothing{remedy}")
    own = {change.part for change in found}
    for name, part in hnet.target.module.named_modules():
        if isinstance(part, Adapter) and part not in own:
            raise ValueError(f"peft has nothing for the adapter {name!r}{remedy}")
    places = [(change.name, change.tensor) for change in found]
    several = in_several_places(hnet.target.module)
    for change, place in zip(found, places, strict=True):
        if change.name in several:
            raise ValueError(
                f"peft changes one place of a layer that a model has in several: layer "
                f"{change.name!r}{remedy}"
            )
        if not change.name:
            raise ValueError(f"peft cannot change a model that is one layer itself{remedy}")
        if places.count(place) > 1 or type(change.part) is not type(found[0].part):
            raise ValueError(
                f"peft has nothing for several changes, or of several kinds: layer "
                f"{change.name!r}{remedy}"
            )


def _modules_to_save(
    hnet: HyperNetwork, values: dict[str, Tensor], generated: dict[str, Tensor]
) -> list[str]:
    """Modules, other than factors, that are generated or were trained."""
    target = hnet.target.module
    own = [
        name
        for name, value in values.items()
        if name in generated or value.requires_grad or f"module.{name}" not in hnet.target.given
    ]
    aliases = {spec.name: spec.aliases for spec in hnet.target.layout}
    several = in_several_places(target)
    if tied := [name for name in own if aliases.get(name) or name in several]:
        raise ValueError(
            f"peft writes whole modules, and cannot write the tied parameter {tied[0]!r} for all "
            "its places; use `materialize`"
        )
    # Statistics that all tasks share; those of each task are refused.
    found, given = fingerprints(statistics_of(target)), hnet.target.given_statistics
    own += [name for name, statistic in found.items() if statistic != given.get(name)]
    owners = {name.rpartition(".")[0] for name in own}
    if clash := [o for o in owners if o in several]:
        raise ValueError(
            f"peft writes one place of a module that a model has in several: {clash[0]!r}; use "
            "`materialize`"
        )
    for owner in owners:
        if (
            not owner
            or "parametrizations" in owner.split(".")
            or parametrizations(target.get_submodule(owner))
        ):
            raise ValueError(
                f"peft writes whole modules, and cannot write what else of {owner!r} is generated "
                "or trained; use `materialize`"
            )
    modules = sorted(o for o in owners if not any(o.startswith(f"{other}.") for other in owners))
    for name, _ in target.named_modules():
        alike = [m for m in modules if name.endswith(m) and name not in modules]
        if alike:  # peft tells modules by the ends of their names
            raise ValueError(
                f"peft would take {name!r} for {alike[0]!r}, which is generated or trained, as its "
                "name ends alike; rename it, or use `materialize`"
            )
    return modules


def in_several_places(module: nn.Module) -> set[str]:
    """Names of modules and parameters that a module has under several names."""
    names: dict[int, list[str]] = {}
    for kind in (module.named_modules, module.named_parameters):
        for name, value in kind(remove_duplicate=False):
            names.setdefault(id(value), []).append(name)
    return {name for several in names.values() if len(several) > 1 for name in several}


def _config(target: nn.Module, scales: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """The settings that follow from the rank and the factor of each layer."""
    rank, factor = max(scales.values(), key=[*scales.values()].count)
    exact = {name: f"^{re.escape(name)}" for name in scales}
    ends = sorted({name.rpartition(".")[2] for name in scales})
    matched = {n for n, _ in target.named_modules() if n.rpartition(".")[2] in ends}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": factor * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # Ends of names, as people write them, where they mean these layers only.
        "target_modules": ends if matched == set(scales) else "|".join(map(re.escape, scales)),
        "rank_pattern": {exact[n]: r for n, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {
            exact[n]: f * r for n, (r, f) in scales.items() if f * r != factor * rank
        },
    }


def _name_of(target: nn.Module) -> str | None:
    """The name or path of a pretrained model of transformers."""
    name = getattr(getattr(target, "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and name else None
