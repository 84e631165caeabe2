"""Training a model on many tasks: the loop, evaluation and the run directory.

Needs the extra ``train``. It takes any iterable of batches ``(x, y, task)`` and any module that is
called as ``model(x, task=task)``.
"""

from sparsehyper._util.interrupt import Interrupted
from sparsehyper.training.checkpoint import CheckpointError
from sparsehyper.training.collating import DataCollatorWithTask
from sparsehyper.training.config import TrainConfig
from sparsehyper.training.directory import RunInUseError
from sparsehyper.training.evaluate import Evaluation, evaluate
from sparsehyper.training.finite import NonFiniteError
from sparsehyper.training.loop import TrainResult, train
from sparsehyper.training.processes import Processes, processes
from sparsehyper.training.run import Run

__all__ = [
    "CheckpointError",
    "DataCollatorWithTask",
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
