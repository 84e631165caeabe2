"""Training a model of many tasks: the loop, evaluation, and the run directory.

Needs the extra ``train``. It takes any iterable source of batches and any module called as
``model(x, task=task)``, and knows neither `sparsehyper.lab.data` nor the kinds of model.
"""

from sparsehyper.training.checkpoint import CheckpointError
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.evaluate import Evaluation, evaluate
from sparsehyper.training.interrupt import Interrupted
from sparsehyper.training.loop import NonFiniteError, TrainResult, train
from sparsehyper.training.processes import Processes, processes
from sparsehyper.training.run import Run, RunInUseError

__all__ = [
    "CheckpointError",
    "Evaluation",
    "Interrupted",
    "NonFiniteError",
    "Processes",
    "Run",
    "RunInUseError",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "processes",
    "train",
]
