"""The study of all images: is `adapt_task` as good as training on all of a new task's images?

This page was written before any result existed; what follows is the plan. In the study of
adaptation `adapt_task` was behind training from scratch by 0.9 points, as the mean over families,
where it had all images of a new task: its ways shared 10 seconds. Since then most of the time goes
to one way from 5,000 images on, which was measured on one seed of four tasks.

**Questions.** From all images of a new task, is `adapt_task` with 10 seconds more accurate (1) than
the same network from scratch, and (2) than a trunk of the known tasks, all of it fine-tuned?

**Families.** Four of the study of adaptation, with its targets, drawings, seeds and test images,
whose figures were known: permutations and hues of CIFAR-10, where it was behind from scratch;
rotations and pairs of CIFAR-10, where a single way with all of the time was better than it by 2.3
and 4.4 points.

**Methods and search.** Learners are those of that study: the default hypernetwork with `adapt_task`
alone; the network from scratch and the trunk, whose numbers of updates, 200, 800 or 3,200 of 64
images, are chosen by the loss on a third of the images. That study stopped at 800, which is less
than all of 60,000 images once; 3,200 are 3.4 times those, and 20 times all of two classes of
CIFAR-10. Their time is not limited. Each method has two trials of its learning rate on tasks of
another seed, judged on validation images of new tasks from 5 images per class, as there.

**Statistics.** Five seeds. Accuracies are means over a seed's new tasks, one or two. Differences
are paired over seeds, with 95% intervals by Student's t; the families of a question are a family
for Holm's correction, and the mean over families is a claim of its own.

**What counts as what.** "Level" where the interval of a mean lies above −0.5 points; "ahead" where
it lies above 0. The pages say where a family is shown to lose. Its time makes `adapt_task` depend
on the machine; the seconds of all methods are in the tables.

**Cost.** Two hours of one core. Families are run one after another, in the order of the list: run
no more processes than there are cores.

**Changed** before any figure was looked at, when the first family had been trained: the first plan
took 500 images per class too, and had the 800 updates of the study of adaptation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sparsehyper.lab import plots
from sparsehyper.lab.studies.adaptation_families import CPU_FAMILIES, Family
from sparsehyper.lab.studies.few_shot import (
    AUTO,
    HYPERNETWORK,
    LEARNERS,
    TRUNK,
    HypernetworkLearner,
    Learner,
    TrunkLearner,
)
from sparsehyper.lab.studies.few_shot_results import (
    FinalCells,
    Trials,
    accuracy_tables,
    claims_of,
    rows_of,
    searches_of,
    trained_of,
    trained_table,
    trials_table,
)
from sparsehyper.lab.studies.few_shot_study import FewShotStudy
from sparsehyper.lab.studies.pages import Table
from sparsehyper.lab.studies.study import Results

_SCRATCH, _TUNED = "scratch", "fine-tuned trunk"
_LINES = {
    AUTO: (plots.VERMILION, "o", "-"),
    _TUNED: (plots.GREEN, "^", "--"),
    _SCRATCH: (plots.DARK, "D", "--"),
}


class _Auto(HypernetworkLearner):
    """`adapt_task` alone."""

    ways: ClassVar[tuple[str, ...]] = (AUTO,)


class _Tuned(TrunkLearner):
    """All of the trunk, tuned."""

    ways: ClassVar[tuple[str, ...]] = (_TUNED,)


_LEARNERS: dict[str, type[Learner]] = {
    HYPERNETWORK: _Auto,
    _SCRATCH: LEARNERS[_SCRATCH],
    TRUNK: _Tuned,
}
_UPDATES = (200, 800, 3200)
_FAMILIES = (
    "permuted Fashion-MNIST",
    "rotated MNIST",
    "CIFAR-10 pairs",
    "CIFAR-10 pairs in 8 hues",
)


def _of_adaptation(names: Iterable[str]) -> dict[str, Family]:
    learners = tuple(_LEARNERS)
    return {name: replace(CPU_FAMILIES[name], learners=learners, shots=(None,)) for name in names}


@dataclass(frozen=True)
class AllImages(FewShotStudy):
    """The study of all images.

    Results: ``rows``, with ``family``, ``method``, and for each seed the mean
    ``accuracy`` over new tasks and the mean ``fit_seconds`` of one; ``trained``, the accuracy on
    known tasks; ``trials``; and ``claims``, with the number of their ``question``.
    """

    learners = _LEARNERS
    lines = _LINES
    name = "all-images"
    title = "New tasks with all of their images"
    question = (
        "From all images of a new task, is adapt_task as accurate in 10 seconds as training from "
        "scratch and as fine-tuning a trunk of the known tasks?"
    )
    method = (
        "Every method has two trials of its learning rate on tasks of another seed, is trained on "
        "the same known tasks and learns the same new ones from all of their images, the rivals of "
        "adapt_task with up to 3,200 updates; every seed has fresh tasks. Accuracies are means "
        "over tasks ± standard deviation over seeds; claims are differences paired over seeds, "
        "with Student's t intervals, and verdicts hold after Holm's correction over the families "
        "of a question. The plan, written before the results, is in "
        "`sparsehyper/lab/studies/all_images.py`."
    )
    picture = "accuracy_vs_shots.svg"

    @classmethod
    def smoke(cls) -> AllImages:
        pairs = Family(
            *("digits", "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7}", 1, tuple(_LEARNERS)),
            target="mlp:32",
            steps=20,
            tasks_per_batch=2,
            shots=(None,),
        )
        return cls({"pairs": pairs, "longer": replace(pairs, steps=40)}, 2, 1, 0.05, (5, 20))

    @classmethod
    def cpu(cls) -> AllImages:
        return cls(_of_adaptation(_FAMILIES), updates=_UPDATES)

    @classmethod
    def full(cls) -> AllImages:
        every = _of_adaptation(CPU_FAMILIES)
        return cls(every, trials=4, seconds=60.0, updates=_UPDATES, device="auto")

    def conclude(self, trials: Trials, final: FinalCells) -> dict[str, Any]:
        rows = list(rows_of(self.families, self.learners, self.seeds, final))
        return {
            "rows": rows,
            "trained": list(trained_of(self.families, self.seeds, final)),
            "trials": searches_of(self.learners, trials),
            "claims": list(_claims(tuple(self.families), rows)),
        }

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return [*accuracy_tables(results), trained_table(results), trials_table(results)]


def _claims(families: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    accuracy = {(row["family"], row["method"]): row["accuracy"] for row in rows}
    for question, rival in enumerate((_SCRATCH, _TUNED), 1):
        pairs = {name: (accuracy[name, AUTO], accuracy[name, rival]) for name in families}
        yield from claims_of(f"{AUTO} − {rival}", pairs, question=question)
