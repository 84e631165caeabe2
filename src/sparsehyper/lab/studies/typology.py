"""The study of the typology: every generator on the same tasks, and accuracy against budget.

Each cell trains one hypernetwork and measures test accuracy, trainable parameters ÷ N, the time of
a training step and that of making one model. It has three parts: which generator (``kinds``), how
small (``budgets``), and which initialisation (``inits``).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from sparsehyper.lab.plots import draw_budgets
from sparsehyper.lab.runs.config import DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.setup import target_layout
from sparsehyper.lab.studies.cells import Workspace, slug
from sparsehyper.lab.studies.pages import Table, deviation, percent
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.lab.studies.trainings import chunked_within, run_trainings, training
from sparsehyper.layout import count_numbers

# Name → generator, with its defaults except where the thesis or the size of the target differs.
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
_BUDGETED = ("chunked, flat", "chunks of tensors")  # as large as linear sparse ones
_RESIDUAL = "sparse, residual"
_LATENT = 64

_TITLES = {
    "kinds": "Every generator",
    "budgets": "Linear sparse and chunked by budget",
    "inits": "Initialisations, at 4 N (residual at 5 N)",
}


@dataclass(frozen=True)
class Typology(Study):
    """The study of the typology.

    Results: rows of ``kinds``, ``budgets`` and ``inits``, with ``method`` and ``parameters`` ÷ N,
    and ``accuracy``, ``step_ms`` and ``model_ms`` of each seed.

    Args:
        data: images and tasks.
        target: as `build_target` takes it.
        steps: number of updates.
        kinds: generators to compare, of `KINDS`.
        budgets: trainable parameters ÷ N at which sparse and chunked generators are compared.
        inits: initialisations to compare, or ``"residual"``, which is a base.
        seeds: number of seeds.
        device: training device.
    """

    data: DataConfig
    target: str = "mlp:100-100"
    steps: int = 1500
    kinds: tuple[str, ...] = tuple(KINDS)
    budgets: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
    inits: tuple[str, ...] = ("torch", "hyperfan_in", "hyperfan_out", "residual")
    seeds: int = 3
    device: str = "cpu"

    name = "typology"
    title = "Every generator"
    question = (
        "How accurate is each generator at what size, how small can sparse and chunked ones be, "
        "and which initialisation is best?"
    )
    method = (
        "Every generator is trained on the same tasks, for the same number of updates and at the "
        "same learning rate. Mean test accuracy over tasks ± standard deviation over seeds."
    )
    picture = "accuracy_vs_budget.svg"

    @classmethod
    def smoke(cls) -> Typology:
        data = DataConfig("digits", "split:2")
        kinds = ("sparse, linear", "chunked, flat", "butterfly")
        return cls(data, "mlp:400", 20, kinds, (0.5, 4.0), ("torch", "residual"), 2)

    @classmethod
    def cpu(cls) -> Typology:
        return cls(DataConfig("fashion_mnist", "permuted:10"))

    @classmethod
    def full(cls) -> Typology:
        data = DataConfig("fashion_mnist", "permuted:10")
        return cls(data, "mlp:400-400-400", 30_000, seeds=5, device="auto")

    def task_sets(self) -> list[DataConfig]:
        return [self.data]

    def run(self, workspace: Workspace) -> dict[str, Any]:
        example = _experiment(self, 0, method="sparse")
        numel = count_numbers(target_layout(example, workspace.files[self.data].load()))
        parts = {"kinds": _kinds(self), "budgets": _budgets(self, numel), "inits": _inits(self)}
        names = {
            (part, label): [f"{part}--{slug(label)}--{seed}" for seed in range(self.seeds)]
            for part, labels in parts.items()
            for label in labels
        }
        experiments = {
            names[part, label][seed]: _experiment(self, seed, **settings)
            for seed in range(self.seeds)
            for part, labels in parts.items()
            for label, settings in labels.items()
        }
        done = run_trainings(experiments, workspace)
        results: dict[str, Any] = {}
        for part, labels in parts.items():
            rows = results[part] = []
            for label in labels:
                found = [done[name] for name in names[part, label]]
                each = ("accuracy", "step_ms", "model_ms")
                values = {key: [cell[key] for cell in found] for key in each}
                rows.append({"method": label, "parameters": found[0]["parameters"], **values})
        return results

    @staticmethod
    def tables(results: Results) -> list[Table]:
        columns = ["method", "trainable ÷ N", "accuracy, %", "step, ms", "a model, ms"]
        return [
            Table(
                title,
                columns,
                [
                    [
                        row["method"],
                        f"{row['parameters']:.2f}",
                        percent(row["accuracy"]),
                        f"{statistics.median(row['step_ms']):.1f}",
                        f"{statistics.median(row['model_ms']):.2f}",
                    ]
                    for row in results[part]
                ],
            )
            for part, title in _TITLES.items()
        ]

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        rows = [
            {
                "method": row["method"].partition(",")[0],
                "accuracy": {
                    "mean": statistics.fmean(row["accuracy"]),
                    "sd": deviation(row["accuracy"]),
                },
                "parameters_per_target_parameter": row["parameters"],
            }
            for row in results["budgets"]
        ]
        study = results["study"]
        title = f"{study['data']['source']} {study['data']['tasks']}, target {study['target']}"
        draw_budgets(rows, f"{title}, {study['seeds']} seeds", path)

    @staticmethod
    def by_budget(results: Results) -> list[tuple[str, list[Mapping[str, Any]]]]:
        return [(title, results[part]) for part, title in _TITLES.items()]


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
    """Sparse and chunked generators at every budget that they can meet."""
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
            # a residual base has N more parameters
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
