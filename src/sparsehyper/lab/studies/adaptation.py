"""The study of adaptation: is `adapt_task` ahead of anything simpler on new tasks?

It supersedes the study of new tasks (`new_tasks`), which asked which generator infers models from
an embedding alone. This page was written before any result existed; what follows is the plan.

**Question.** Twenty or so tasks are known, and a new one comes with few examples. Is the model of
``adapt_task(hnet, name, samples)`` as good as that of the best single method, which nobody knows
beforehand, and better than what a practitioner would do without a hypernetwork?

**Families.** The nine of the study of new tasks, and hand-written characters: tasks of 10
characters of one of five alphabets, which are learned from tasks of the other four. Every seed has
fresh tasks: permutations, groupings of classes and characters are drawn anew, so are the pairs,
angles and hues that are held out, and each alphabet is left out in turn. Colour images have the
stride network of the earlier study, as it is four times as fast as the default ``cnn``, which the
characters have. Drawings are shifted, turned and scaled at random while learners are pretrained,
all but Reptile, which makes its own batches.

**Methods.** Each learner is pretrained on the same batches and for as many updates, and learns the
same held-out tasks from the same images, in one or several ways:

- the default hypernetwork of the command line (its head follows from the tasks, its base from the
  head): ``auto``, which is `adapt_task`; and each of the ways that it chooses among, alone, with
  all images and as much time;
- a shared trunk: a linear probe, the nearest class mean, and all of it fine-tuned;
- Prototypical Networks and Reptile; the same network from scratch;
- nearest neighbour and logistic regression on pixels;
- experts, one network a known task, for the accuracy on known tasks alone.

Numbers of updates and penalties of baselines are chosen by cross-validation on the new task's
images (`LEARNING`), so that no baseline overfits for want of early stopping.

**Search.** Every learner has two trials: of the learning rate of pretraining; from scratch, of the
learning rate; for Reptile, of the inner learning rate; of the number of neighbours; for
regressions, of the penalty. At the scale ``full`` there are four, with the weight decay, the batch
size, the outer rate, the distance and more penalties. The engine of
`search` judges by known tasks, so trials are cells of this study: each pretrains on the tasks of a
seed of its own and learns held-out ones, and is judged by their validation images. Every way of a
baseline has the best of its own trials; the ways of the hypernetwork have the best of ``auto``.
Five alphabets are too few to keep one for trials: those of characters use the first one.

**Statistics.** Accuracies are means over a seed's held-out tasks, on test images that nothing else
has seen. Differences are paired over seeds, with 95% intervals by Student's t. Seeds, not tasks,
are the pairs, as the tasks of a seed share a pretraining.

**What counts as what.** The *best way* and the *best method* of a family and number of images are
those of the highest mean accuracy over all seeds, among the hypernetwork's ways and among
everything but ``auto``: choices made with hindsight, which bias them upwards. A task's stated
accuracy is right if the measured one lies within its stated 95% interval. The goals are in
`adaptation_results`; they were set before.

**Cost.** One or two new tasks a seed, not nine, two trials and 10 seconds for `adapt_task`, half of
its default, keep the scale ``cpu`` near five hours of one core. Families are run one after another.
`adapt_task` keeps to a time, so its results depend on the machine: run no more processes than there
are cores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparsehyper.lab import plots
from sparsehyper.lab.studies.adaptation_families import CPU_FAMILIES, DEFAULT_CNN, Family
from sparsehyper.lab.studies.adaptation_results import conclusions, tables
from sparsehyper.lab.studies.few_shot import (
    AUTO,
    EXPERTS,
    HYPERNETWORK,
    LEARNERS,
    TRUNK,
)
from sparsehyper.lab.studies.few_shot_results import FinalCells, Trials
from sparsehyper.lab.studies.few_shot_study import FewShotStudy
from sparsehyper.lab.studies.pages import Table
from sparsehyper.lab.studies.study import Results
from sparsehyper.lab.studies.trainings import CNN, RESNETS

# Lines of the picture, in the order of its legend: colour, marker and style.
_LINES = {
    AUTO: (plots.VERMILION, "o", "-"),
    "linear probe": (plots.SKY, "X", "--"),
    "Prototypical Networks": (plots.BLUE, "s", "--"),
    "fine-tuned trunk": (plots.GREEN, "^", "--"),
    "Reptile": (plots.BROWN, "<", "--"),
    "scratch": (plots.DARK, "D", "--"),
    "nearest neighbour": (plots.ORANGE, "P", ":"),
    "logistic regression": (plots.BLACK, "*", ":"),
}


@dataclass(frozen=True)
class Adaptation(FewShotStudy):
    """The study of adaptation.

    Results: ``rows``, with ``family``, ``method``, ``shots``, and for each seed the mean
    ``accuracy`` over new tasks and the mean ``fit_seconds`` of one; ``best``, the best way and the
    best method of every family and number of images; ``stated``, what `adapt_task` said and chose;
    ``trained``, the accuracy of learners on known tasks; ``trials``; ``figures``, the goals; and
    ``claims``.
    """

    learners = LEARNERS
    lines = _LINES
    name = "adaptation"
    title = "Adaptation to new tasks"
    question = (
        "Is adapt_task as good on new tasks as the best single method, chosen with hindsight, and "
        "better than a probe on a shared trunk, Prototypical Networks and training from scratch?"
    )
    method = (
        "Every learner has two trials of its settings on tasks of another seed, is trained on the "
        "same known tasks and learns the same new ones from 1, 5, 20, 100 and all images per "
        "class; every seed has fresh tasks. Accuracies are means over new tasks ± standard "
        "deviation over seeds; claims are differences paired over seeds, with Student's t "
        "intervals. The best way is chosen with hindsight, from the same test images. The plan, "
        "written before the results, is in `sparsehyper/lab/studies/adaptation.py`."
    )
    picture = "accuracy_vs_shots.svg"

    @classmethod
    def smoke(cls) -> Adaptation:
        pairs = Family(
            *("digits", "split:{0}-{1},{2}-{3},{4}-{5},{6}-{7}", 1),
            target="mlp:32",
            steps=20,
            tasks_per_batch=2,
            shots=(1, 5, None),
        )
        groups = replace(
            pairs,
            tasks="split:{0}-{1},{0}-{2},{3}-{4},{3}-{5}",
            held_out=None,
            learners=(HYPERNETWORK, TRUNK, "Prototypical Networks", "scratch", EXPERTS),
            shots=(5,),
        )
        return cls({"pairs": pairs, "groups": groups}, 2, 2, 0.05, (5, 20))

    @classmethod
    def cpu(cls) -> Adaptation:
        return cls(CPU_FAMILIES)

    @classmethod
    def full(cls) -> Adaptation:
        targets = {
            Family.target: ("mlp:400-400-400", 30_000),
            CNN: (RESNETS["resnet32"], 60_000),
            DEFAULT_CNN: (DEFAULT_CNN, 10_000),
        }
        full = {}
        for name, family in CPU_FAMILIES.items():
            target, steps = targets[family.target]
            held = 5 if family.held_out == 2 else family.held_out
            full[name] = replace(family, target=target, steps=steps, held_out=held, most=5)
        return cls(full, trials=4, seconds=60.0, device="auto")

    def conclude(self, trials: Trials, final: FinalCells) -> dict[str, Any]:
        return conclusions(self.families, self.seeds, trials, final)

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return tables(results)
