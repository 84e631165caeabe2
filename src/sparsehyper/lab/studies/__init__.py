"""Studies: one engine that runs them, and one file for each."""

from sparsehyper.lab.studies.adaptation import Adaptation
from sparsehyper.lab.studies.adapters import Adapters
from sparsehyper.lab.studies.all_images import AllImages
from sparsehyper.lab.studies.comparison import Comparison
from sparsehyper.lab.studies.conditioners import Conditioners
from sparsehyper.lab.studies.fair_comparison import FairComparison
from sparsehyper.lab.studies.generator_size import GeneratorSize
from sparsehyper.lab.studies.interpolation import Interpolation
from sparsehyper.lab.studies.new_tasks import NewTasks
from sparsehyper.lab.studies.scaling import Scaling
from sparsehyper.lab.studies.shared_base import SharedBase
from sparsehyper.lab.studies.study import SCALES, Study, run_study
from sparsehyper.lab.studies.support_sets import SupportSets
from sparsehyper.lab.studies.target_sparsity import TargetSparsity
from sparsehyper.lab.studies.thesis_targets import ThesisTargets
from sparsehyper.lab.studies.typology import Typology
from sparsehyper.lab.studies.variations import Variations

_ALL: tuple[type[Study], ...] = (
    *(
        Variations,
        Comparison,
        FairComparison,
        SharedBase,
        ThesisTargets,
        GeneratorSize,
        NewTasks,
        Adaptation,
        AllImages,
        Adapters,
        Conditioners,
        SupportSets,
        Interpolation,
        TargetSparsity,
        Scaling,
        Typology,
    ),
)
STUDIES = {study.name: study for study in _ALL}

__all__ = ["SCALES", "STUDIES", "Study", "run_study"]
