"""Hypernetworks on disk: a directory of ``config.json`` and ``model.safetensors``, no pickle."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsehyper._files import whole
from sparsehyper.conditioning import Conditioner, conditioner_from_config
from sparsehyper.generators import generator_from_config

FORMAT = 1

_SETTINGS = ("others", "base", "init", "scale", "norm_stats", "noise", "dropout", "seed")
_NOT_IN_OLDER = {"init": "torch", "noise": 0.0, "dropout": 0.0}

Model = TypeVar("Model", bound=nn.Module)


def save(
    directory: str | os.PathLike[str], config: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Write a model's directory, which appears whole or not at all.

    Raises:
        FileExistsError: ``directory`` exists.
    """
    with whole("directory", Path(directory)) as path:
        path.mkdir()
        save_file(_apart(state), path / "model.safetensors")
        versions = {"format": FORMAT, "torch": torch.__version__}
        (path / "config.json").write_text(json.dumps({**versions, **config}, indent=2) + "\n")


def read(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model's directory: its configuration and its tensors.

    Raises:
        FileNotFoundError: no such directory, or it lacks a file.
        ValueError: a damaged file or a format this version does not know.
    """
    path = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{str(path)!r} is not a saved model: it has no {name}")
    try:
        config = json.loads((path / "config.json").read_text())
        version = config["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path / 'config.json')!r} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {version!r}, this version reads format {FORMAT}"
        )
    try:
        return config, load_file(path / "model.safetensors")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(path / 'model.safetensors')!r} is damaged: {error}") from error


def load(
    make: Callable[..., Model],
    directory: str | os.PathLike[str],
    target: nn.Module,
    conditioner: Conditioner | None,
) -> Model:
    """Read what ``HyperNetwork.save`` wrote; ``make`` is its class. See ``HyperNetwork.load``."""
    config, state = read(directory)
    try:
        saved = {name: tuple(shape) for name, shape in config["layout"]}
        described = config["conditioner"]
        generator = generator_from_config(config["generator"])
        known = {**_NOT_IN_OLDER, **config}
        settings = {name: known[name] for name in _SETTINGS}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, error) from error
    if conditioner is None:
        try:
            conditioner = conditioner_from_config(described)
        except (KeyError, TypeError) as error:
            raise _damaged(directory, error) from error
    if conditioner.to_config() != described:
        raise ValueError(
            f"`conditioner` does not fit: {str(directory)!r} was saved with {described}, this is "
            f"{conditioner.to_config()}"
        )
    _check_layout(saved, target)
    hnet = make(target, generator, conditioner, generate=lambda name, _: name in saved, **settings)
    load_state(hnet, state, str(directory))
    return hnet


def _damaged(directory: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(f"{str(Path(directory) / 'config.json')!r} is damaged: {error!r}")


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """``load_state_dict`` with an error that names the first tensor that does not fit.

    Raises:
        ValueError: a missing, unexpected or mis-shaped tensor.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(f"{source!r} does not fit this model: it lacks the tensor {name!r}")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{source!r} does not fit this model: tensor {name!r} has shape "
                f"{list(state[name].shape)}, the model's is {list(tensor.shape)}"
            )
    for name in state:
        if name not in expected:
            raise ValueError(f"{source!r} does not fit this model: unexpected tensor {name!r}")
    # Files have no version numbers of modules, without which some look for what older ones saved.
    state = OrderedDict(state)
    state._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory (of tied parameters), which safetensors refuses."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            found = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"{name!r} cannot be saved, being no dense tensor but a {found}; a buffer that the "
                "target can make anew need not be saved: register it with persistent=False"
            )
        whole = tensor.detach().contiguous()
        storage = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    return apart


def _check_layout(saved: dict[str, tuple[int, ...]], target: nn.Module) -> None:
    found = {name: tuple(p.shape) for name, p in target.named_parameters() if p.requires_grad}
    for name, shape in saved.items():
        if found.get(name) != shape:
            instead = f"shape {list(found[name])}" if name in found else "no such parameter"
            raise ValueError(
                f"`target` does not fit: the saved hypernetwork generates {name!r} of shape "
                f"{list(shape)}, this target has {instead}"
            )
