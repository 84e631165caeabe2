"""One run of the benchmarks, written to a directory.

``results.json``, rewritten after every group, holds

=============  ====================================================================================
``machine``    what `sparsehyper.lab.machine` describes
``settings``   device, sizes, rounds, seed
``groups``     the result of each ``measure_…`` function, by name of the group
=============  ====================================================================================

Every row has ``seconds``, one number per round. Values derived from them are given as median and
quartiles (``median``, ``low``, ``high``). Memory is in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.checks import MOST_REPEATS, check_choice, check_integer
from sparsehyper._util.files import write_json
from sparsehyper.lab.bench.adaptation import measure_adaptation
from sparsehyper.lab.bench.generators import measure_generators
from sparsehyper.lab.bench.gpu import GPU_GROUPS, measure_gpu
from sparsehyper.lab.bench.layers import measure_layers
from sparsehyper.lab.bench.peers import measure_peers, peer_command
from sparsehyper.lab.bench.scale import measure_scale
from sparsehyper.lab.bench.sizes import FULL, Sizes
from sparsehyper.lab.bench.steps import measure_steps
from sparsehyper.lab.machine import machine

_FORMAT = 1
GROUPS = ("layers", "generators", "steps", "adaptation", "scale", "peers")
DEVICES = ("cpu", "cuda")
RESULTS = "results.json"
Measure = Callable[[Sizes, int, int], dict[str, Any]]


def bench(
    directory: str | PathLike[str],
    *,
    groups: Sequence[str] | None = None,
    peers: str | PathLike[str] | None = None,
    sizes: Sizes = FULL,
    rounds: int = 7,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run groups of benchmarks; yields, after each, its name and all results so far.

    Args:
        directory: directory for ``results.json``; made if it does not exist.
        groups: names from `GROUPS`, or on a GPU from `GPU_GROUPS`; all by default, ``"peers"`` only
            if its folder is given.
        peers: folder with the worker of other libraries and their environment.
        sizes: sizes of the benchmarks.
        rounds: number of times that everything is timed, at least 1.
        seed: seed of wirings, weights and inputs.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        FileExistsError: the directory already has results.
        FileNotFoundError: the folder ``peers`` is incomplete.
        ValueError: an unknown group, or ``"peers"`` without their folder; a device that is not
            there; ``rounds`` below 1 or a negative seed.
    """
    check_integer("rounds", rounds, minimum=1, maximum=MOST_REPEATS)
    check_integer("seed", seed, minimum=0)
    measures: dict[str, Measure] = {
        "layers": measure_layers,
        "generators": measure_generators,
        "steps": measure_steps,
        "adaptation": measure_adaptation,
        "scale": measure_scale,
    }
    check_choice("device", device, DEVICES)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("`device` 'cuda' is not available on this machine; use 'cpu'")
        measures = {group: partial(measure_gpu, group) for group in GPU_GROUPS}
    elif peers is not None:
        measures["peers"] = partial(measure_peers, peer_command(peers))
    for group in groups or ():
        check_choice("only", group, GPU_GROUPS if device == "cuda" else GROUPS)
        if group not in measures:
            raise ValueError(
                "`only` names peers, so `peers` must be their folder: benchmarks/peers"
            )
    path = Path(directory) / RESULTS
    if path.exists():
        raise FileExistsError(f"{path} exists; give another `out`, or remove it")
    if path.parent.exists() and not path.parent.is_dir():
        raise FileExistsError(f"`out` must be a directory, and {path.parent} is a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "format": _FORMAT,
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {
            "device": device,
            "sizes": dataclasses.asdict(sizes),
            "rounds": rounds,
            "seed": seed,
        },
        "groups": {},
    }
    return _run({group: measures[group] for group in groups or measures}, results, path)


def _run(
    measures: dict[str, Measure], results: dict[str, Any], path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    settings = results["settings"]
    sizes = Sizes(**settings["sizes"])
    for group, measure in measures.items():
        results["groups"][group] = measure(sizes, settings["rounds"], settings["seed"])
        write_json(path, results)
        yield group, results
