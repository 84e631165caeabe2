"""The study of conditioners: what should the models of a hypernetwork depend on?

This page was written before any result existed, and before the code that computes them; what
follows is the plan.

**Questions.** (1) On tasks that were trained, how do models that follow from examples of the task,
from the input, or from input and task compare with those of a trained embedding? (2) On new tasks,
without a step of training, how do they compare with an embedding that is fitted, and with a probe
on a shared trunk? (3) Does it help a support set to be pooled by class (Requeima 2019) rather than
as a whole (Zaheer 2017)? A first trial of pooling as a whole was 8 to 9 points behind a fitted
embedding after 1,000 updates. (4) The hue experiment of F. Cubélier, "Sparse hypernetworks for
multitasking" (Liège, 2022), as it was: train on tasks in their own colours, then find embeddings
for copies of these tasks in other hues. How good are they, and is a fitted embedding better than
the model of the task that was copied?

**Families.** Every seed has fresh tasks.

- *rotated MNIST*: 12 angles of which the seed draws 2 that are new. Tasks are variations of one
  another with the same classes; heads are generated.
- *Fashion-MNIST pairs*: all 45 pairs of classes, of which the seed draws 2. Tasks have classes of
  their own; heads are solved by ridge regression from a task's examples, the command line's
  default. Known tasks are trained on every fifth image, as all of these must be read to solve their
  heads. The input alone knows no tasks, so its head is generated; as most classes are the first
  of some pairs and the second of others, it cannot be right, and is there to show that.
- *CIFAR-10 pairs, then other hues*: five pairs, drawn anew for each seed, in their own colours;
  their copies at hues a quarter and half a turn away, ten tasks, are new. All heads are generated,
  as in the thesis: a copy has the labels of its original, so an embedding alone can say all.

Targets are small convolutional networks without norms, since a model for each input allows no batch
norm; all methods of a family have the same one.

**Methods.** All have the sparse generator of the command line with the base that it chooses
(learned, or residual where heads are solved), embeddings of 64 numbers, the same batches and as
many updates. Encoders have the target's form. A new task comes with 1, 5 or 20 images per class,
the same for all methods.

- task embedding: the *mean embedding* of the known tasks and the *nearest embedding*, that of the
  known task whose model has the least loss on the images, without a step; and the *fitted
  embedding*, `fit_embedding` with its defaults;
- support set: the embedding of the images, *by class* and *mean*, without a step;
- *input*: the input alone, which needs no images of the task; *input and task*: with the mean of
  the known tasks' vectors;
- shared trunk: *linear probe*, the penalty by cross-validation, and *nearest mean*.

Where heads are solved, all hypernetworks but that of the input solve the new task's from its
images.

**Search.** Every method has two trials of the learning rate, 2e-3 and 5e-3, on the tasks of a seed
of its own. The mean accuracy on validation images of its new tasks, from 5 images per class,
decides: of the task embedding that of the fitted one, of the trunk each way's own.

**Statistics.** Five seeds. Accuracies are means over a seed's tasks, on test images that nothing
else sees: at most 500 of each new task, every fifth of known ones. Differences are paired over
seeds, with 95% intervals by Student's t. All claims of a family count as one family of tests, and
their verdicts hold after Holm's correction.

**What counts as what.** On new tasks: support set by class − fitted embedding, − linear probe, −
support set as a whole, and − nearest embedding; input − fitted embedding; input and task − fitted
embedding; for each number of images, and their mean. On known tasks: each conditioner − task
embedding. For the hues also: fitted embedding − nearest embedding (is anything gained by finding
it?), − linear probe, and − its own accuracy on the tasks that were trained (what a change of hue
costs). A claim is supported if the difference is above zero, not supported if it is below, else
undecided; an interval says by how much. The mean over numbers of images is the verdict of a family.

**Cost.** The scale ``cpu`` takes about 45 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from sparsehyper.lab import plots
from sparsehyper.lab.runs.config import GENERATED, Experiment
from sparsehyper.lab.studies.adaptation_families import Family
from sparsehyper.lab.studies.conditioner_methods import (
    BOTH,
    BY_CLASS,
    EMBEDDING,
    FITTED,
    INPUT,
    MEAN,
    METHODS,
    NEAREST,
    PROBE,
    SHARED,
    THEN_FITTED,
    WHOLE,
)
from sparsehyper.lab.studies.few_shot import Learner
from sparsehyper.lab.studies.few_shot_results import (
    FinalCells,
    Trials,
    accuracy_tables,
    rows_of,
    searches_of,
    trained_of,
    trained_table,
    trials_table,
)
from sparsehyper.lab.studies.few_shot_study import FewShotStudy
from sparsehyper.lab.studies.intervals import claim_of, holm, mean_of
from sparsehyper.lab.studies.pages import Table
from sparsehyper.lab.studies.study import Results

HUES = "CIFAR-10 pairs, then other hues"
_KNOWN, _MEAN = "known tasks", "mean"  # in place of a number of images
_LATENT_DIM = 64

# Differences on new tasks, and those of the hue experiment.
_CLAIMS = (
    *((BY_CLASS, rival) for rival in (FITTED, PROBE, WHOLE, NEAREST)),
    *((method, FITTED) for method in (INPUT, BOTH)),
)
_HUE_CLAIMS = ((FITTED, NEAREST), (FITTED, PROBE))

# Lines of the picture, in the order of its legend: colour, marker and style.
LINES = {
    FITTED: (plots.VERMILION, "o", "-"),
    NEAREST: (plots.ORANGE, "^", "-"),
    MEAN: (plots.BROWN, "v", "-"),
    BY_CLASS: (plots.BLUE, "s", "-"),
    WHOLE: (plots.SKY, "D", "-"),
    THEN_FITTED: (plots.SKY, "D", "-"),
    BOTH: (plots.PURPLE, "P", "-"),
    INPUT: (plots.GREEN, "X", "-"),
    PROBE: (plots.DARK, "<", "--"),
    "nearest mean": (plots.BLACK, "*", "--"),
}


def _family(source: str, tasks: str, held_out: int | tuple[int, ...], target: str) -> Family:
    return Family(
        *(source, tasks, held_out, tuple(METHODS), target),
        steps=500,
        shots=(1, 5, 20),
        most=10,
    )


PAIRS = "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7},{8}-{9}"
SMALL_CNN = "cnn:8-16,norm=none,pool=max"
STRIDED_CNN = "cnn:16-32-64,norm=none,pool=stride"
_COPIES = tuple(range(5, 15))  # of five pairs in their own colours
_CPU = {
    "rotated MNIST": _family("mnist", "rotated:12", 2, SMALL_CNN),
    "Fashion-MNIST pairs": _family("fashion_mnist", "split:2,all", 2, SMALL_CNN),
    HUES: _family("cifar10", f"{PAIRS}/hue:0,0.25,0.5", _COPIES, STRIDED_CNN),
}
_SOLVED = {"Fashion-MNIST pairs": "ridge"}


@dataclass(frozen=True)
class Conditioners(FewShotStudy):
    """The study of conditioners.

    Results: ``rows``, with ``family``, ``method``, ``shots``, and for each seed the mean
    ``accuracy`` over new tasks and the mean ``fit_seconds`` of one; ``trained``, the accuracy of
    each learner on known tasks; ``trials``; and ``claims``.

    Args:
        heads: the head of each family whose head is not generated.
    """

    test_images: int = 500
    heads: dict[str, str] = field(default_factory=dict)

    learners: ClassVar[Mapping[str, type[Learner]]] = METHODS
    lines = LINES
    name = "conditioners"
    title = "Conditioners"
    question = (
        "How good are models that follow from examples of a task, from the input, or from both, on "
        "tasks that were trained and on new ones without training? And the thesis's hue experiment "
        "as it was: do embeddings fit copies of the trained tasks in other hues?"
    )
    method = (
        "Every method has trials of its learning rate on tasks of another seed, is trained on "
        "the same known tasks and gets the same 1, 5 and 20 images per class of new ones; every "
        "seed has fresh tasks. Accuracies are means over tasks ± standard deviation over seeds; "
        "claims are differences paired over seeds, with Student's t intervals, and verdicts hold "
        "after Holm's correction within a family. The plan, written before the results, is in "
        "`sparsehyper/lab/studies/conditioners.py`."
    )
    picture = "accuracy_vs_shots.svg"

    @classmethod
    def smoke(cls) -> Conditioners:
        pairs = Family(
            *("digits", "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7}", 1, tuple(METHODS), "mlp:16"),
            steps=20,
            tasks_per_batch=2,
            shots=(1, 5),
        )
        turned = replace(pairs, tasks="rotated:4")
        # digits have no colours
        families = {"solved": pairs, HUES: replace(turned, held_out=(2, 3))}
        return cls(families, 2, 2, test_images=50, heads={"solved": "ridge"})

    @classmethod
    def cpu(cls) -> Self:
        return cls(_CPU, heads=_SOLVED)

    @classmethod
    def full(cls) -> Self:
        cpu = cls.cpu()
        longer = {name: replace(family, steps=20_000) for name, family in cpu.families.items()}
        return replace(cpu, families=longer, trials=4, test_images=10_000, device="auto")

    def experiment(self, name: str, seed: int) -> Experiment:
        """With the head that the plan names and the base that goes with it."""
        head = self.heads.get(name, GENERATED)
        return replace(
            super().experiment(name, seed),
            latent_dim=_LATENT_DIM,
            head=head,
            base="learned" if head == GENERATED else "residual",
        )

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """Ways that are compared on the new tasks of a family."""
        return (*_CLAIMS, *(_HUE_CLAIMS if name == HUES else ()))

    def conclude(self, trials: Trials, final: FinalCells) -> dict[str, Any]:
        rows = list(rows_of(self.families, self.learners, self.seeds, final))
        trained = list(trained_of(self.families, self.seeds, final))
        claims = [
            holm(list(_claims(name, rows, trained, self.pairs(name)))) for name in self.families
        ]
        return {
            "rows": rows,
            "trained": trained,
            "trials": searches_of(self.learners, trials),
            "claims": [claim for of_family in claims for claim in of_family],
        }

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return [*accuracy_tables(results), trained_table(results), trials_table(results)]


def _claims(
    family: str,
    rows: Sequence[Mapping[str, Any]],
    trained: Sequence[Mapping[str, Any]],
    pairs: Iterable[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """The differences of the plan, paired over seeds; at last those of the known tasks."""
    found: dict[str, dict[Any, list[float]]] = {}
    for row in rows:
        if row["family"] == family:
            found.setdefault(row["method"], {})[row["shots"]] = row["accuracy"]
    for own in found.values():
        own[_MEAN] = mean_of(own.values())
    known = {row["learner"]: row["accuracy"] for row in trained if row["family"] == family}
    for ours, theirs in pairs:
        for shots, values in found[ours].items():
            yield claim_of(family, f"{ours} − {theirs}", values, found[theirs][shots], shots=shots)
    if family == HUES:
        for shots, values in found[FITTED].items():
            what = f"{FITTED} − {EMBEDDING} on known tasks"
            yield claim_of(family, what, values, known[EMBEDDING], shots=shots)
    for learner, values in known.items():
        if learner not in (EMBEDDING, SHARED):
            what = f"{learner} − {EMBEDDING}"
            yield claim_of(family, what, values, known[EMBEDDING], shots=_KNOWN)
