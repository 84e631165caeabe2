"""The fair comparison: is sparse ahead of chunked, where, by how much, and for how long?

It supersedes the study of methods (`comparison`), which was revised three times after its test
figures had been seen, each time in favour of sparse. This page was written before any result
existed, and is left alone once there is one: what is changed later is a new study.

**Questions.** (1) On which sets of tasks, and at which budgets, is one of the two generators more
accurate? (2) Are the generators of the thesis, as it proposed them? (3) Where does the lead end as
training gets longer? (4) Why was sparse behind on CIFAR-10 2×5 at 4 N?

**Sets.** Permutations of MNIST and of Fashion-MNIST, twenty pairs of Fashion-MNIST, and CIFAR-10
in five pairs and in two groups of five. Permutations, pairs and groups are drawn anew for every
seed, and so is the split into training and validation images, so that an interval speaks of tasks
like these. Sets where every method has 99% are left out, as a difference cannot show there.

**Test images.** Half of them, those whose hash is odd, are held back: they are opened once, by the
final trainings of this study. The other half is for development and is not used here. Searches see
validation images only. The earlier study has seen all test images as a mean over seeds; its
revisions chose among designs of the generator, which this study takes as they are.

**Methods.** At each budget the default sparse generator (linear fan-in, growth 2, weights shared
where the budget asks for it) and chunked. At 4 N the thesis's own: sparse with uniform and with
local wiring, a linear schedule, a base of zeros and nothing shared; and chunked with two hidden
layers of twice the embedding. As a frame, experts and a shared trunk.

**Search.** On every set, for every method and budget, on tasks of a seed of their own:

- settings of both: the learning rate, the base (zeros or learned), the similarity of tasks at the
  start (0 or 0.9), the length of an embedding; of chunked also one or two hidden layers, their
  width and the length of a chunk's embedding; the number of chunks follows from these and the
  budget. Sparse has no further setting. The thesis's own have their learning rate and embedding
  length searched; experts and the trunk, their learning rate;
- three trials for each of these settings, so 12 for sparse and 21 for chunked. A draw that cannot
  meet the budget costs no trial. Every search draws its own trials;
- while the best trial lies at an end of a range, the range is extended there, a learning rate by a
  factor of four and others by their next value, and one trial for each setting is added, for at
  most three rounds. The rule is the same for all, and the page says which ends were still best.

**Statistics.** Eight seeds; differences are paired over them, with 95% intervals by Student's t.
The claims of each question are a family, and a verdict needs p ≤ 0.05 after Holm's correction in
it. A difference is also said as images in 10,000. It is *small* where its whole interval is within
25 of these, whatever the verdict.

**What counts as what.** Question 1 is answered with the places where a verdict falls, for either
side; there is no mean over budgets, which one budget may carry. Question 2: the thesis's best
sparse against its chunked at 4 N, with both wirings as claims. Question 3: differences of question
1 after 500, 1,500, 5,000 and 20,000 updates, at 0.25 N and 4 N, on the Fashion-MNIST sets, four
seeds. Settings are those found at 500 updates, but from 5,000 on the learning rate is the best of
three, 1, ½ and ¼ of it, on validation images after 5,000. Also once as the thesis trained, with
halving and patience: a training stops when 10 of at most 300 evaluations have brought nothing.
The lead *ends* at the first length from which on no verdict falls for sparse. Question 4: variants
of sparse with fewer numbers of their own for a task (a base, 4, 16 or 64 units to a weight), with
short embeddings, and with weight decay, on CIFAR-10 2×5, and how much better each is on its
training images than on new ones. Whichever closes most of the gap names the cause.

**Cost.** From the recorded trainings of the earlier study, 6 to 9 seconds of one core each at 500
updates (MLP, 10 to 14 ms a step) or 350 (CNN, 16 to 20 ms): question 1 has 20 places of about 71
trainings (82 if every search uses all its rounds), 10,700 s; the frame 700 s; question 2 2,400 s;
question 3 11,600 s; question 4 600 s. Sum 26,000 s of one core, 3.6 hours of two, at most 3.9. The
tasks of all seeds take about 5 GB of disk meanwhile. Sets are run one after another, then question
3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsehyper.lab.data import SharedTasks
from sparsehyper.lab.runs.config import DataConfig, Experiment
from sparsehyper.lab.studies.cells import Workspace
from sparsehyper.lab.studies.fair_results import conclusions, tables
from sparsehyper.lab.studies.fair_sets import (
    AT_EVERY_BUDGET,
    CHUNKED,
    CPU_SETS,
    FULL_SETS,
    PERMUTED,
    SPARSE,
    THESIS_CHUNKED,
    THESIS_SPARSE,
    TWENTY,
    VARIANTS,
    FreshTasks,
)
from sparsehyper.lab.studies.fresh_study import FreshStudy, Place, cell_of, measure, row_of
from sparsehyper.lab.studies.pages import Table
from sparsehyper.lab.studies.search import LR, SEARCH_SEED, with_settings
from sparsehyper.lab.studies.study import Results
from sparsehyper.lab.studies.trainings import trained
from sparsehyper.training import NonFiniteError

_RATES = (1.0, 0.5, 0.25)  # of the learning rate that was found, for longer trainings


@dataclass(frozen=True)
class FairComparison(FreshStudy):
    """The fair comparison.

    Results: ``searches``, by name of the cell; ``rows``, with the set as ``family``, ``method``,
    ``budget``, ``parameters`` ÷ N and ``generator``, and for each seed ``accuracy``, on held-back
    test images, ``trained``, on training images, and ``step_ms``; ``lengths``, the same for longer
    trainings, with ``updates``; and ``claims``, with the number of their ``question``.

    Args:
        long_sets: sets on which longer trainings are compared.
        long_budgets: trainable parameters ÷ N of longer trainings.
        lengths: updates of longer trainings; None for the thesis's way to stop, after at most the
            longest.
        rates_at: updates after which learning rates are chosen for trainings of this length or
            longer.
        long_seeds: number of seeds of longer trainings.
    """

    long_sets: tuple[str, ...] = (PERMUTED, TWENTY)
    long_budgets: tuple[float, ...] = (0.25, 4.0)
    lengths: tuple[int | None, ...] = (500, 1500, 5000, 20_000, None)
    rates_at: int = 5000
    long_seeds: int = 4

    name = "fair-comparison"
    title = "A fair comparison"
    question = (
        "Where is one of sparse and chunked hypernetworks of the same budget more accurate, by how "
        "much, and for how long? And those that the thesis proposed?"
    )
    method = (
        "On every set, for every method and budget, three trials for each setting that is searched "
        "are judged on validation images of tasks of another seed; ranges are extended while the "
        "best is at an end. Every seed has fresh tasks and a fresh split. Accuracy is that on "
        "a half of the test images that nothing else in this study has seen, as the mean over "
        "tasks ± standard deviation over seeds; differences are paired over seeds, with Student's "
        "t intervals, and verdicts hold after Holm's correction over the claims of a question. The "
        "plan, written before the results, is in `sparsehyper/lab/studies/fair_comparison.py`."
    )

    @classmethod
    def smoke(cls) -> FairComparison:
        methods = (SPARSE, CHUNKED, THESIS_SPARSE[0], THESIS_CHUNKED, "experts")
        pairs = FreshTasks(
            *("digits", "split:{0}-{1},{2}-{3}", "mlp:32", 6, 2, 5),
            methods=(*methods, next(iter(VARIANTS))),
        )
        return cls(
            {"digits": pairs},
            budgets=(1.0, 4.0),
            trials=1,
            seeds=2,
            long_sets=("digits",),
            long_budgets=(4.0,),
            lengths=(6, 12, None),
            rates_at=12,
            long_seeds=2,
        )

    @classmethod
    def cpu(cls) -> FairComparison:
        return cls(CPU_SETS)

    @classmethod
    def full(cls) -> FairComparison:
        """Settings of the thesis's protocol: its targets and batches, 300 epochs, patience 10."""
        return cls(FULL_SETS, stops=True, device="auto", long_sets=())

    def run(self, workspace: Workspace) -> dict[str, Any]:
        searches, rows = self.measure_all(workspace)
        longer = [
            row_of(place, cells, updates)
            for name in self.long_sets
            for place in (Place(name, m, b) for b in self.long_budgets for m in AT_EVERY_BUDGET)
            for updates, cells in self._longer(place, searches, workspace).items()
        ]
        return conclusions(searches, rows, longer)

    def _longer(
        self, place: Place, searches: Mapping[str, Mapping[str, Any]], workspace: Workspace
    ) -> dict[int | None, list[dict[str, Any]]]:
        """Trainings of a place for each of the lengths."""
        search = searches[f"search--{place}"]
        lr = search["settings_found"][LR]
        tried = {
            factor * lr: cell_of(
                workspace,
                f"rate--{place}--{factor:g}",
                with_settings(
                    self.experiment(place, SEARCH_SEED, search, steps=self.rates_at),
                    {LR: factor * lr},
                ),
            )
            for factor in _RATES
        }
        validation = workspace.run([*tried.values()], _validate)
        best = max(tried, key=lambda rate: validation[tried[rate].name]["validation"])
        longest = max(updates for updates in self.lengths if updates is not None)
        cells = {
            updates: [
                cell_of(
                    workspace,
                    f"{place}--{updates or 'stops'}--{seed}",
                    with_settings(
                        self.experiment(
                            place, seed, search, steps=updates or longest, stops=updates is None
                        ),
                        {LR: best if (updates or longest) >= self.rates_at else lr},
                    ),
                )
                for seed in range(self.long_seeds)
            ]
            for updates in self.lengths
        }
        found = workspace.run([cell for some in cells.values() for cell in some], measure)
        return {updates: [found[cell.name] for cell in some] for updates, some in cells.items()}

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return tables(results)


def _validate(settings: dict[str, Any], files: Mapping[DataConfig, SharedTasks]) -> dict[str, Any]:
    """The validation accuracy; no test image is used."""
    experiment = Experiment.from_dict(settings["experiment"])
    try:
        return {"validation": trained(experiment, files[experiment.data].load())[1].best.accuracy}
    except NonFiniteError:
        return {"validation": 0.0}
