"""New tasks for a trained hypernetwork: fit embeddings, identify tasks, fine-tune models."""

from sparsehyper.adaptation.fit import EMBEDDING_INITS, SPACES, Fit, fit_embedding, fit_embeddings
from sparsehyper.adaptation.identify import Identified, identify_task
from sparsehyper.adaptation.predict import average_predictions
from sparsehyper.adaptation.profiles import TaskProfiles, task_profiles
from sparsehyper.adaptation.tune import TUNINGS, fine_tune

__all__ = [
    "EMBEDDING_INITS",
    "SPACES",
    "TUNINGS",
    "Fit",
    "Identified",
    "TaskProfiles",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
    "task_profiles",
]
