"""The studies' results, as pages and pictures, one file a study."""

from sparsehyper.lab.report.studies import (
    comparison,
    interpolation,
    new_tasks,
    scaling,
    target_sparsity,
    typology,
    variations,
)
from sparsehyper.lab.report.studies.pages import StudyReport, Table, all_tables, markdown

REPORTS = {
    "variations": variations.REPORT,
    "compare": comparison.REPORT,
    "new-tasks": new_tasks.REPORT,
    "interpolation": interpolation.REPORT,
    "target-sparsity": target_sparsity.REPORT,
    "scaling": scaling.REPORT,
    "typology": typology.REPORT,
}

__all__ = ["REPORTS", "StudyReport", "Table", "all_tables", "markdown"]
