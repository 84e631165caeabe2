"""New tasks for a trained hypernetwork: adapt by the best means, fit, tune, identify."""

from sparsehyper.adaptation.auto import METHODS, Adapted, Judged, adapt_task, adapt_tasks
from sparsehyper.adaptation.fit import EMBEDDING_INITS, SPACES, Fit, fit_embedding, fit_embeddings
from sparsehyper.adaptation.identify import Identified, identify_task
from sparsehyper.adaptation.predict import average_predictions
from sparsehyper.adaptation.profiles import TaskProfiles, task_profiles
from sparsehyper.adaptation.tune import TUNINGS, fine_tune

__all__ = [
    "EMBEDDING_INITS",
    "METHODS",
    "SPACES",
    "TUNINGS",
    "Adapted",
    "Fit",
    "Identified",
    "Judged",
    "TaskProfiles",
    "adapt_task",
    "adapt_tasks",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
    "task_profiles",
]
