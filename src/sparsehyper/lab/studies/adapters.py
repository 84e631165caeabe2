"""The study of adapters: does a hypernetwork write better ones for new tasks than anything simpler?

This page was written before any result on test sentences existed; what follows is the plan. It was
made with seeds from 100 on, and with validation sentences alone.

**Question.** A sentence encoder is frozen. Many tasks, each to tell some intents apart, are known,
and a new one comes with its intents' names and few sentences, from domains never trained on. Is a
LoRA that a hypernetwork generates for the task, from an embedding, from the names or from examples,
better than a classifier on the frozen encoder, than a LoRA from scratch, and than one LoRA that all
tasks share?

**Data.** CLINC150 and all-MiniLM-L6-v2 (`lab.data.sentences`). A seed draws which 7 domains are
known and which 3 are not. Tasks are of six kinds in turn: 5, 10 or 15 intents, of one domain or of
any. There are 60 known tasks of known domains, trained with 40 sentences an intent. A seed's new
tasks are of the other domains: 10 intents of each, and 5, 10 and 15 intents of any, with 20
test sentences of every intent. Sentences are cut after 24 tokens.

**What every method is given.** The names of the intents count as one more example each, for every
method and at every number of examples, so that 0 examples are the names alone. LoRA changes the
query and value layers of the same upper blocks at the same rank; the blocks below are frozen, and
what they make of each sentence is computed once.

**Methods** (`adapter_methods`).

- nearest class mean and logistic regression on the frozen encoder's sentence vectors, the penalty
  by cross-validation;
- a LoRA and a last layer from scratch by peft, the number of updates by cross-validation;
- one shared LoRA, trained on the known tasks by the same loss as the generated ones, whose new task
  gets a logistic regression or the nearest class mean;
- LoRA generated from an embedding that is fitted to the examples; from the mean vector of the
  names; from examples by a set encoder; and from the names, then refined by fitting its embedding.
  The last layer is a logistic regression. All tasks share a base that is trained beside the
  generator, and what differs between tasks starts small.

**Statistics.** Accuracies are means over a seed's new tasks. Differences are paired over 5 seeds,
with 95% intervals by Student's t, and have a verdict each. The *best* generated LoRA of a number of
examples is that of the highest mean accuracy, a choice with hindsight among three. Goals "at 95%"
are reached if the whole interval is beyond them. The goals are in `adapter_results`; they were set
before.

**Cost.** Sizes and times are measured in a cell of their own. Seconds to learn a task include the
cross-validation and are those of one core, without the blocks below.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparsehyper._util.classifiers import mask_classes
from sparsehyper._util.random import seeded
from sparsehyper.lab import plots
from sparsehyper.lab.data.sentences import (
    CLINC,
    MADE_UP,
    NAME,
    Corpus,
    SharedCorpus,
    write_corpus,
)
from sparsehyper.lab.runs.config import DataConfig
from sparsehyper.lab.studies.adapter_costs import costs
from sparsehyper.lab.studies.adapter_methods import METHODS, How, Support, Task, with_names
from sparsehyper.lab.studies.adapter_results import conclusions, tables
from sparsehyper.lab.studies.cells import Cell, Workspace, slug
from sparsehyper.lab.studies.pages import Table, shots_lines, shots_panels
from sparsehyper.lab.studies.study import Results, Study
from sparsehyper.training.isolation import scratch

ONE, ANY = "one domain", "any domains"

# Lines of the picture, in the order of its legend: colour, marker and style.
_LINES = {
    "LoRA from an embedding": (plots.ORANGE, "o", "-"),
    "LoRA from the description": (plots.VERMILION, "s", "-"),
    "LoRA from examples": (plots.BROWN, "^", "-"),
    "shared LoRA": (plots.SKY, "X", "--"),
    "LoRA from scratch": (plots.DARK, "D", "--"),
    "nearest mean": (plots.GREEN, "P", ":"),
    "logistic regression": (plots.BLACK, "*", ":"),
}


@dataclass(frozen=True)
class Adapters(Study):
    """The study of adapters.

    Results: ``rows``, with ``family``, ``method``, ``shots``, and for each seed the mean
    ``accuracy`` over new tasks and the mean ``fit_seconds`` of one; ``tasks``, the accuracies of
    single tasks; ``costs``, sizes and times; ``figures``, the goals; and ``claims``.

    Args:
        corpus: sentences and encoder, as `write_corpus` takes them.
        upper: number of the encoder's upper blocks that adapters change.
        unseen: number of domains that nothing is trained on.
        known: number of known tasks.
        families: numbers of intents of a seed's new tasks, by family.
        how: settings of the methods.
        seeds: number of seeds.
        shots: numbers of examples of an intent.
    """

    corpus: str = CLINC
    upper: int = 3
    unseen: int = 3
    known: int = 60
    families: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {ONE: (10, 10, 10), ANY: (5, 10, 15)}
    )
    how: How = field(default_factory=How)
    seeds: int = 5
    shots: tuple[int, ...] = (0, 1, 5, 20)

    name = "adapters"
    title = "Adapters for a frozen sentence encoder"
    question = (
        "Is a LoRA that a hypernetwork generates for a new task better than a classifier on the "
        "frozen encoder, than LoRA from scratch and than one LoRA for all tasks?"
    )
    method = (
        "Tasks are to tell intents of CLINC150 apart, with all-MiniLM-L6-v2. New tasks are of "
        "three domains that nothing was trained on; every seed has others. Every method is given "
        "the intents' names, and 0, 1, 5 or 20 sentences of each. Accuracies are means over new "
        "tasks ± standard deviation over seeds; claims are differences paired over seeds, with "
        "Student's t intervals. The plan, written before the results, is in "
        "`sparsehyper/lab/studies/adapters.py`."
    )
    picture = "accuracy_vs_examples.svg"

    @classmethod
    def smoke(cls) -> Adapters:
        how = How(
            2, latent_dim=8, products=2, steps=20, lr=0.03, fit_steps=2, updates=(2, 4), peft=False
        )
        return cls(MADE_UP, 1, 2, 6, {ONE: (4,), ANY: (6,)}, how, 2, (0, 1, 5))

    @classmethod
    def cpu(cls) -> Adapters:
        return cls()

    @classmethod
    def full(cls) -> Adapters:
        return cls(upper=6, known=200, how=How(steps=2000, fit_steps=25, updates=(50, 200)))

    def task_sets(self) -> tuple[DataConfig, ...]:
        return ()  # it has sentences

    @contextmanager
    def files(self, directory: Path, data_dir: str | None) -> Iterator[dict[str, SharedCorpus]]:
        with scratch(directory) as folder:
            yield {
                self.corpus: write_corpus(self.corpus, self.upper, data_dir, folder / "corpus.pt")
            }

    def run(self, workspace: Workspace) -> dict[str, Any]:
        cells = {
            (method, seed): self._cell(workspace, method, seed)
            for seed in range(self.seeds)
            for method in METHODS
        }
        measured = Cell("costs", {**self._settings(workspace), "seed": 0})
        done = workspace.run([*cells.values()], _cell)
        done |= workspace.run([measured], _costs)
        return conclusions(
            {key: done[cell.name] for key, cell in cells.items()},
            done[measured.name],
            self.seeds,
            self.families,
            self.shots,
        )

    def _settings(self, workspace: Workspace) -> dict[str, Any]:
        return {
            "corpus": self.corpus,
            "fingerprint": workspace.files[self.corpus].fingerprint,
            "upper": self.upper,
            "unseen": self.unseen,
            "known": self.known,
            "how": asdict(self.how),
        }

    def _cell(self, workspace: Workspace, method: str, seed: int) -> Cell:
        settings = {
            **self._settings(workspace),
            "seed": seed,
            "method": method,
            "families": {name: list(sizes) for name, sizes in self.families.items()},
            "shots": list(self.shots),
            "judged_by": "test",
        }
        return Cell(f"{slug(method)}--{seed}", settings)

    @staticmethod
    def tables(results: Results) -> list[Table]:
        return tables(results)

    @staticmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        shots_panels(results, _LINES, path, "sentences of each intent")

    @staticmethod
    def by_shots(results: Results) -> dict[str, Any]:
        return shots_lines(results, _LINES)


def draw_tasks(
    domains: Mapping[str, Sequence[str]],
    unseen: int,
    known: int,
    families: Mapping[str, Sequence[int]],
    seed: int,
) -> tuple[list[Task], dict[str, list[Task]]]:
    """Known tasks, and new ones by family; no domain is in both.

    Args:
        domains: intents of each domain.
        unseen: number of domains of new tasks.
        known: number of known tasks, of the kinds of the families in turn.
        families: numbers of intents of new tasks, for each family.
        seed: seed of everything.
    """
    rng = random.Random(seed)
    names = rng.sample(list(domains), len(domains))
    new, old = names[:unseen], names[unseen:]

    def draw(family: str, size: int, domain: str, of: Sequence[str]) -> tuple[str, ...]:
        own = [domain] if family == ONE else of
        every = [intent for one in own for intent in domains[one]]
        return tuple(rng.sample(every, min(size, len(every))))

    sizes = sorted({size for own in families.values() for size in own})
    kinds = [(family, size) for size in sizes for family in families]
    drawn = [
        Task(f"known {i}", draw(*kinds[i % len(kinds)], rng.choice(old), old)) for i in range(known)
    ]
    fresh = {
        family: [
            Task(f"{family} {i}", draw(family, size, new[i % unseen], new))
            for i, size in enumerate(own)
        ]
        for family, own in families.items()
    }
    return drawn, fresh


def _cell(settings: dict[str, Any], files: Mapping[str, SharedCorpus]) -> dict[str, Any]:
    """Train a method on known tasks, and learn the new ones."""
    corpus, seed = files[settings["corpus"]].load(), settings["seed"]
    kinds = settings["unseen"], settings["known"], settings["families"]
    known, new = draw_tasks(corpus.domains, *kinds, seed)
    method = METHODS[settings["method"]](corpus, known, _how(settings), seed)
    started = time.perf_counter()
    method.pretrain()
    result: dict[str, Any] = {"pretrain_seconds": time.perf_counter() - started}
    accuracies: dict[str, Any] = {way: {family: [] for family in new} for way in method.ways}
    seconds: dict[str, Any] = {way: {family: [] for family in new} for way in method.ways}
    for family, tasks in new.items():
        for shots in settings["shots"]:
            for way in method.ways:
                found, spent = [], []
                for number, task in enumerate(tasks):
                    support = support_of(corpus, task, shots, 1000 * seed + number)
                    started = time.perf_counter()
                    model = method.learn(way, support)
                    spent.append(time.perf_counter() - started)
                    found.append(_accuracy(model, corpus, task, settings["judged_by"]))
                accuracies[way][family].append(found)
                seconds[way][family].append(statistics.fmean(spent))
    return {**result, "accuracies": accuracies, "fit_seconds": seconds}


def _costs(settings: dict[str, Any], files: Mapping[str, SharedCorpus]) -> dict[str, Any]:
    corpus = files[settings["corpus"]].load()
    families = {ONE: (10,), ANY: (10,)}
    seed = settings["seed"]
    known, _ = draw_tasks(corpus.domains, settings["unseen"], settings["known"], families, seed)
    return costs(corpus, known, _how(settings), seed)


def support_of(corpus: Corpus, task: Task, shots: int, seed: int) -> Support:
    """The names of a new task's intents, and some sentences of each."""
    numbers, labels = with_names(corpus, "train", task, shots, seeded(seed))
    return Support(numbers, labels, corpus.draw(NAME, task.intents, 1, seeded(0))[0])


@torch.no_grad()
def _accuracy(model: Any, corpus: Corpus, task: Task, part: str) -> float:
    numbers, labels = corpus.draw(part, task.intents, None, seeded(0))
    logits = mask_classes(model(numbers), len(task.intents))
    return float((logits.argmax(1) == labels).float().mean())


def _how(settings: Mapping[str, Any]) -> How:
    own: dict[str, Any] = settings["how"]
    return How(**{name: _hashable(value) for name, value in own.items()})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
