"""New tasks for a trained hypernetwork: adapt by the best means, fit, tune, identify."""

from sparsehyper.adaptation.auto import METHODS, Adapted, Judged, adapt_task
from sparsehyper.adaptation.fit import EMBEDDING_INITS, SPACES, Fit, fit_embedding, fit_embeddings
from sparsehyper.adaptation.predict import Identified, average_predictions, identify_task
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
    "adapt_task",
    "average_predictions",
    "fine_tune",
    "fit_embedding",
    "fit_embeddings",
    "identify_task",
]
