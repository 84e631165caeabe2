"""Experiments: which data, target and method; one run of them; and comparisons of several."""

from sparsehyper.experiments.baselines import BASELINES, Experts, SharedTrunk
from sparsehyper.experiments.run import (
    LoadedRun,
    evaluate_run,
    load_run,
    read_experiment,
    read_result,
    run_experiment,
)
from sparsehyper.experiments.setup import (
    METHODS,
    DataConfig,
    Experiment,
    TaskInfo,
    build_model,
    load_tasks,
    make_batches,
    parse_method,
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
    "evaluate_run",
    "load_run",
    "load_tasks",
    "make_batches",
    "parse_method",
    "read_experiment",
    "read_result",
    "resolve",
    "run_experiment",
]
