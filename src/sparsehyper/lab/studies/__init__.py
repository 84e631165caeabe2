"""Named studies: functions that return complete configurations, and what runs them."""

from collections.abc import Callable
from typing import Any

from sparsehyper.lab.studies.cells import SCALES
from sparsehyper.lab.studies.comparison import comparison_study, run_comparison
from sparsehyper.lab.studies.interpolation import interpolation_study, run_interpolation
from sparsehyper.lab.studies.new_tasks import new_tasks_study, run_new_tasks
from sparsehyper.lab.studies.scaling import run_scaling, scaling_study
from sparsehyper.lab.studies.target_sparsity import (
    run_target_sparsity,
    target_sparsity_study,
)
from sparsehyper.lab.studies.typology import run_typology, typology_study
from sparsehyper.lab.studies.variations import run_variations, variations_study

# Name → settings at a scale, and the function that runs a study of such settings.
STUDIES: dict[str, tuple[Callable[[str], Any], Callable[..., dict[str, Any]]]] = {
    "variations": (variations_study, run_variations),
    "compare": (comparison_study, run_comparison),
    "new-tasks": (new_tasks_study, run_new_tasks),
    "interpolation": (interpolation_study, run_interpolation),
    "target-sparsity": (target_sparsity_study, run_target_sparsity),
    "scaling": (scaling_study, run_scaling),
    "typology": (typology_study, run_typology),
}

__all__ = [
    "SCALES",
    "STUDIES",
    "comparison_study",
    "interpolation_study",
    "new_tasks_study",
    "run_comparison",
    "run_interpolation",
    "run_new_tasks",
    "run_scaling",
    "run_target_sparsity",
    "run_typology",
    "run_variations",
    "scaling_study",
    "target_sparsity_study",
    "typology_study",
    "variations_study",
]
