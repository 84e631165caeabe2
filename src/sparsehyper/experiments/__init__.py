"""Experiments: which data, target and method; one run of them; and comparisons of several."""

from sparsehyper.experiments.baselines import BASELINES, Experts, SharedTrunk
from sparsehyper.experiments.compare import compare
from sparsehyper.experiments.config import METHODS, DataConfig, Experiment, parse_method
from sparsehyper.experiments.run import (
    LoadedRun,
    evaluate_run,
    load_run,
    read_experiment,
    run_experiment,
)
from sparsehyper.experiments.setup import (
    TaskInfo,
    build_model,
    load_tasks,
    make_batches,
    resolve,
)
from sparsehyper.experiments.targets import build_target

__all__ = [
    "BASELINES",
    "METHODS",
    "DataConfig",
    "Experiment",
    "Experts",
    "LoadedRun",
    "SharedTrunk",
    "TaskInfo",
    "build_model",
    "build_target",
    "compare",
    "evaluate_run",
    "load_run",
    "load_tasks",
    "make_batches",
    "parse_method",
    "read_experiment",
    "resolve",
    "run_experiment",
]
