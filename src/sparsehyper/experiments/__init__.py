"""Experiments: which data, target and method; one run of them; and comparisons of several."""

from sparsehyper.experiments.adapted import shares_weights
from sparsehyper.experiments.baselines import BASELINES, Experts, SharedTrunk
from sparsehyper.experiments.compare import COMPARED, compare
from sparsehyper.experiments.config import METHODS, DataConfig, Experiment, parse_method
from sparsehyper.experiments.describe import describe_run
from sparsehyper.experiments.export import FORMATS, export_run
from sparsehyper.experiments.predict import Prediction, predict_run
from sparsehyper.experiments.run import (
    LoadedRun,
    adapt_run,
    change_tasks,
    describe_tasks,
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
    "COMPARED",
    "FORMATS",
    "METHODS",
    "DataConfig",
    "Experiment",
    "Experts",
    "LoadedRun",
    "Prediction",
    "SharedTrunk",
    "TaskInfo",
    "adapt_run",
    "build_model",
    "build_target",
    "change_tasks",
    "compare",
    "describe_run",
    "describe_tasks",
    "evaluate_run",
    "export_run",
    "load_run",
    "load_tasks",
    "make_batches",
    "parse_method",
    "predict_run",
    "read_experiment",
    "resolve",
    "run_experiment",
    "shares_weights",
]
