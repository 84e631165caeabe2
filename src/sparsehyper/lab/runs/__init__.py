"""Experiments (data, target and method), their runs, and comparisons of several runs."""

from sparsehyper.lab.runs.adapted import adapt_run, change_tasks, describe_tasks, shares_weights
from sparsehyper.lab.runs.baselines import BASELINES, Experts, SharedTrunk
from sparsehyper.lab.runs.compare import COMPARED, compare
from sparsehyper.lab.runs.config import METHODS, DataConfig, Experiment, parse_method
from sparsehyper.lab.runs.describe import describe_run
from sparsehyper.lab.runs.export import FORMATS, export_run
from sparsehyper.lab.runs.loading import LoadedRun, load_run, read_experiment, recorded_tasks
from sparsehyper.lab.runs.predict import Prediction, predict_run
from sparsehyper.lab.runs.predict_table import TablePrediction, predict_table
from sparsehyper.lab.runs.run import evaluate_run, run_experiment
from sparsehyper.lab.runs.setup import build_model, load_tasks, make_batches, resolve
from sparsehyper.lab.runs.targets import build_target

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
    "TablePrediction",
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
    "predict_table",
    "read_experiment",
    "recorded_tasks",
    "resolve",
    "run_experiment",
    "shares_weights",
]
