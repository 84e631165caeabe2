"""The study of the typology: every generator on the same tasks, and accuracy against budget.

Each cell trains one hypernetwork and measures it: test accuracy, trainable parameters ÷ N, the time
of a training step and that of making one model. Three questions share the cells: which generator
(`kinds`), how small (`budgets`), and which initialisation (`inits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehyper._util.checks import check_choice
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import count_target_parameters
from sparsehyper.lab.studies.cells import (
    SCALES,
    Settings,
    shared_tasks,
    slug,
)
from sparsehyper.lab.studies.trainings import chunked_within, run_trainings, training

# Each at its defaults, but for what the thesis or the target's size asks for.
KINDS = {
    "dense, linear": "dense",
    "dense, MLP": "dense:hidden=30",
    "chunked, flat": "chunked",
    "chunks of tensors": "chunked:by=tensor",
    "per filter": "chunked:by=filter",
    "sparse, linear": "sparse",
    "sparse, affine": "sparse:bias=true",
    "sparse, MLP": "sparse:activation=prelu",
    "sparse, MLP with biases": "sparse:activation=prelu,bias=true",
    "sparse, growth 8": "sparse:growth=8",
    "sparse, shared 8": "sparse:share=8",
    "butterfly": "butterfly:stages=6",
    "low rank": "low_rank:rank=8",
    "sparse, residual": "sparse",
}
_BUDGETED = ("chunked, flat", "chunks of tensors")  # to what linear sparse ones have
_RESIDUAL = "sparse, residual"

_LATENT = 64


@dataclass(frozen=True)
class Typology(Settings):
    """The study's settings.

    Args:
        data: images and tasks.
        target: as `build_target` takes it.
        steps: updates.
        kinds: generators that are compared, of `KINDS`.
        budgets: trainable parameters ÷ N at which sparse and chunked ones are compared.
        inits: initialisations that are compared, ``residual`` among them.
        seeds: number of seeds.
        device: where training takes place.
    """

    data: DataConfig
    target: str = "mlp:100-100"
    steps: int = 1500
    kinds: tuple[str, ...] = tuple(KINDS)
    budgets: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
    inits: tuple[str, ...] = ("torch", "hyperfan_in", "hyperfan_out", "residual")
    seeds: int = 3
    device: str = "cpu"


def typology_study(scale: str = "cpu") -> Typology:
    """The study's settings at a scale, as `new_tasks_study` has them."""
    check_choice("scale", scale, SCALES)
    if scale == "smoke":
        data = DataConfig("digits", "split:2")
        kinds = ("sparse, linear", "chunked, flat", "butterfly")
        return Typology(data, "mlp:400", 20, kinds, (0.5, 4.0), ("torch", "residual"), 2)
    data = DataConfig("fashion_mnist", "permuted:10")
    if scale == "cpu":
        return Typology(data)
    return Typology(data, "mlp:400-400-400", 30_000, seeds=5, device="auto")


def run_typology(
    study: Typology,
    directory: Path,
    *,
    data_dir: str | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what has not been run yet, and sum up.

    Returns:
        What ``results.json`` then holds: ``study``, ``machine``, ``seconds`` of all cells, and
        rows of ``kinds``, ``budgets`` and ``inits``: ``method``, ``accuracy`` of each seed,
        ``parameters`` ÷ N, ``step_ms`` and ``model_ms`` of each seed.
    """
    with shared_tasks(directory, [study.data], data_dir) as files:
        example = _experiment(study, 0, method="sparse")
        numel = count_target_parameters(example, files[study.data].load())
        parts = {"kinds": _kinds(study), "budgets": _budgets(study, numel), "inits": _inits(study)}
        names = {
            (part, label): [f"{part}--{slug(label)}--{seed}" for seed in range(study.seeds)]
            for part, labels in parts.items()
            for label in labels
        }
        experiments = {
            names[part, label][seed]: _experiment(study, seed, **settings)
            for seed in range(study.seeds)
            for part, labels in parts.items()
            for label, settings in labels.items()
        }
        done = run_trainings(experiments, directory, files, workers=workers, quiet=quiet)
    results: dict[str, Any] = {"study": study.to_dict(), "machine": machine()}
    for part, labels in parts.items():
        rows = results[part] = []
        for label in labels:
            found = [done[name] for name in names[part, label]]
            values = {
                key: [cell[key] for cell in found] for key in ("accuracy", "step_ms", "model_ms")
            }
            rows.append({"method": label, "parameters": found[0]["parameters"], **values})
    results["seconds"] = sum(cell["seconds"] for cell in done.values())
    return results


def _kinds(study: Typology) -> dict[str, dict[str, Any]]:
    return {
        kind: {
            "method": KINDS[kind],
            "budget": 4.0 if kind in _BUDGETED else None,
            "base": "residual" if kind == _RESIDUAL else "zeros",
        }
        for kind in study.kinds
    }


def _budgets(study: Typology, numel: int) -> dict[str, dict[str, Any]]:
    """Sparse and chunked at every budget that they can meet."""
    methods = {}
    for budget in study.budgets:
        methods[f"sparse, {budget:g} N"] = {"method": "sparse", "budget": budget}
    for budget in study.budgets:
        if method := chunked_within(budget, numel, _LATENT):
            methods[f"chunked, {budget:g} N"] = {"method": method, "budget": budget}
    return methods


def _inits(study: Typology) -> dict[str, dict[str, Any]]:
    return {
        f"{method}, {init}": {
            "method": method,
            # A residual base is one N more.
            **(
                {"base": init, "budget": 5.0}
                if init == "residual"
                else {"init": init, "budget": 4.0}
            ),
        }
        for method in ("sparse", "chunked")
        for init in study.inits
    }


def _experiment(study: Typology, seed: int, *, method: str, **settings: Any) -> Experiment:
    return Experiment(
        study.data,
        training(study.steps, seed, device=study.device),
        method=parse_method(method),
        target=study.target,
        latent_dim=_LATENT,
        tasks_per_batch=4,
        **{"base": "zeros", **settings},
    )
