"""The study of support sets: how good are models that follow from examples of a task alone?

This page was written before any result existed; what follows is the plan. In the study of
conditioners the support sets gave nearly the same embedding for all tasks (cosine 1.00) and were 8
to 13 points behind a fitted embedding. Embeddings by examples have since been standardised over
tasks, which helped by 4 to 5 points in one seed of rotated MNIST. This study measures what there is
now.

**Questions.** (1) On new tasks, without a step of training, how do models by support set compare
with an embedding that is fitted, with the known task that suits best, and with a probe on a shared
trunk? (2) Is the embedding of a support set a good start for a fit? (3) Does it help that more
tasks are known? (4) How do support sets and trained embeddings compare on tasks that were trained?

**Families.** Every seed has fresh tasks.

- *rotated MNIST, 10 known* and *34 known*: 12 and 36 angles, of which the seed draws 2 that are
  new; heads are generated;
- *Fashion-MNIST pairs*: all 45 pairs of classes, of which the seed draws 2 that are new; heads are
  solved by ridge regression;
- *CIFAR-10 pairs in 8 hues*: five pairs, drawn anew for each seed, in eight hues each, of which the
  seed draws 4 that are new; heads are generated.

**Methods.** As in the study of conditioners, whose targets, generators and batches these are:

- task embedding: the *mean embedding* of the known tasks, the *nearest embedding*, and the *fitted
  embedding*;
- support set, by class: the embedding of the images as it is, and that embedding *then fitted* on
  the same images, with the same defaults of `fit_embedding`;
- shared trunk: *linear probe* and *nearest mean*.

**Search.** Every method has two trials of the learning rate, 2e-3 and 5e-3, on the tasks of a seed
of its own, judged on validation images of its new tasks from 5 images per class: the support set
without a fit, the task embedding with one. All are trained for 1,000 updates.

**Statistics.** Five seeds. Accuracies are means over a seed's new tasks, on at most 500 test images
of each that nothing else sees. Differences are paired over seeds, with 95% intervals by Student's
t. All claims of a family count as one family of tests for Holm's correction.

**What counts as what.** Question 1: support set − fitted embedding, − nearest embedding, and −
linear probe. Question 2: support set, then fitted − fitted embedding. Both for each number of
images and for their mean, which is the verdict of a family. Question 3: no claim; the differences
of the two rotated families are shown. Question 4: support set − task embedding on known tasks. The
pages recommend support sets for a kind of task only if no verdict of question 1 is against them
there; elsewhere they say how far behind they are.

**Cost.** Two to three hours of one core: a training by support set encodes examples of ten tasks at
every step, and took more than five minutes beside other work, one of embeddings 40 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sparsehyper.lab.studies.adaptation_families import Family
from sparsehyper.lab.studies.conditioner_methods import (
    BY_CLASS,
    FITTED,
    NEAREST,
    PROBE,
    SUPPORT_METHODS,
    THEN_FITTED,
)
from sparsehyper.lab.studies.conditioners import (
    PAIRS,
    SMALL_CNN,
    STRIDED_CNN,
    Conditioners,
)

_SOLVED = "Fashion-MNIST pairs"
_HEADS = {_SOLVED: "ridge"}
_STEPS = 1000


def _family(source: str, tasks: str, held_out: int, target: str = SMALL_CNN) -> Family:
    return Family(
        *(source, tasks, held_out, tuple(SUPPORT_METHODS), target),
        steps=_STEPS,
        shots=(1, 5, 20),
        most=held_out,
    )


_CPU = {
    "rotated MNIST, 10 known": _family("mnist", "rotated:12", 2),
    "rotated MNIST, 34 known": _family("mnist", "rotated:36", 2),
    _SOLVED: _family("fashion_mnist", "split:2,all", 2),
    "CIFAR-10 pairs in 8 hues": _family("cifar10", f"{PAIRS}/hue:8", 4, STRIDED_CNN),
}


@dataclass(frozen=True)
class SupportSets(Conditioners):
    """The study of support sets; results as of `Conditioners`."""

    learners = SUPPORT_METHODS
    name = "support-sets"
    title = "Support sets"
    question = (
        "How good are models that follow from examples of a new task, without training or as the "
        "start of a fit, where few or many tasks are known?"
    )
    method = Conditioners.method.replace("conditioners.py", "support_sets.py")

    @classmethod
    def smoke(cls) -> SupportSets:
        pairs = Family(
            *("digits", "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7}/rotated:2", 1),
            *(tuple(SUPPORT_METHODS), "mlp:16"),
            steps=20,
            shots=(1, 5),
        )
        return cls(
            {"pairs": pairs, "solved": pairs}, 2, 1, test_images=50, heads={"solved": "ridge"}
        )

    @classmethod
    def cpu(cls) -> Self:
        return cls(_CPU, heads=_HEADS)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        rivals = tuple((BY_CLASS, rival) for rival in (FITTED, NEAREST, PROBE))
        return (*rivals, (THEN_FITTED, FITTED))
