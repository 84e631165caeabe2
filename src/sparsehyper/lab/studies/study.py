"""A study: what all studies have in common, and how one is run and written.

==================  ============================================================================
``study.json``      name, scale and settings
``cells.jsonl.gz``  settings and results of all cells
``results.json``    what the study concludes from its cells
``results.md``      the same as a page, with a picture beside it
==================  ============================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from sparsehyper._util.checks import MOST_REPEATS, check_choice, check_integer
from sparsehyper._util.files import read_json, replaced, write_json
from sparsehyper.lab.machine import machine
from sparsehyper.lab.runs.config import DataConfig
from sparsehyper.lab.studies.cells import Workspace, shared_tasks
from sparsehyper.lab.studies.pages import Table, as_markdown, claims_table
from sparsehyper.training.directory import check_same, lock

SCALES = ("smoke", "cpu", "full")

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Study(ABC):
    """A study; its fields are its settings.

    Attributes:
        name: name on the command line.
        title: title of the page.
        question: the question that the study answers.
        method: how the study answers it.
        picture: file name of the picture.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    method: ClassVar[str]
    picture: ClassVar[str]

    def __post_init__(self) -> None:
        check_integer("seeds", getattr(self, "seeds", 1), minimum=1, maximum=MOST_REPEATS)

    @classmethod
    def at_scale(cls, scale: str = "cpu") -> Self:
        """The study with the settings of a scale.

        Args:
            scale: ``"smoke"`` runs everything on tiny data in seconds; ``"cpu"`` answers the
                question on two cores; ``"full"`` is the thesis's protocol, for a GPU.
        """
        check_choice("scale", scale, SCALES)
        study: Self = getattr(cls, scale)()
        return study

    @classmethod
    @abstractmethod
    def smoke(cls) -> Self:
        """Settings of the scale ``"smoke"``."""

    @classmethod
    @abstractmethod
    def cpu(cls) -> Self:
        """Settings of the scale ``"cpu"``."""

    @classmethod
    @abstractmethod
    def full(cls) -> Self:
        """Settings of the scale ``"full"``."""

    @abstractmethod
    def task_sets(self) -> Iterable[DataConfig]:
        """Images and tasks that the study needs."""

    def files(
        self, directory: Path, data_dir: str | None
    ) -> AbstractContextManager[Mapping[Any, Any]]:
        """Files that all cells read; they exist within this context.

        Args:
            directory: study directory; the caller holds its lock.
            data_dir: folder of the named data sets' files.
        """
        return shared_tasks(directory, self.task_sets(), data_dir)

    @abstractmethod
    def run(self, workspace: Workspace) -> dict[str, Any]:
        """Compute what has not been computed yet, and draw conclusions.

        Returns:
            A JSON-ready part of the results; its ``claims``, if there are any, are those of
            `claim_of`.
        """

    @staticmethod
    @abstractmethod
    def tables(results: Results) -> list[Table]:
        """Tables of the results, without that of the claims."""

    @staticmethod
    @abstractmethod
    def draw(results: Results, path: str | PathLike[str]) -> None:
        """Draw the picture of the results."""

    @staticmethod
    def by_budget(_: Results) -> list[tuple[str, list[Mapping[str, Any]]]]:
        """Titles and rows of pictures of accuracy against budget.

        A row has ``method``, ``parameters`` ÷ N, and the ``accuracy`` of each seed.
        """
        return []

    @staticmethod
    def by_shots(_: Results) -> dict[str, Any] | None:
        """Accuracy against images per class, where the study measures that.

        Returns:
            ``shots``, as texts, and ``families``, each with its ``name`` and its ``lines``:
            ``method``, ``colour``, ``marker``, whether it is ``dashed``, and ``mean`` and ``sd``
            over seeds for each of ``shots``.
        """
        return None

    @classmethod
    def all_tables(cls, results: Results) -> list[Table]:
        """The tables of the results, that of the claims first."""
        claims = [claims_table(results["claims"])] if results.get("claims") else []
        return [*claims, *cls.tables(results)]

    @classmethod
    def page(cls, results: Results) -> str:
        """The results as Markdown."""
        machine, claims = results["machine"], results.get("claims", [])
        found = [claim["verdict"] for claim in claims]
        counts = ", ".join(
            f"{found.count(verdict)} {verdict}"
            for verdict in ("supported", "not supported", "undecided")
            if verdict in found
        )
        verdicts = (
            f"**Verdicts.** Of {len(claims)} claims that a difference is above zero: {counts}.\n"
        )
        parts = [
            f"# {cls.title}\n",
            f"**Question.** {cls.question}\n",
            f"**Method.** {cls.method}\n",
            *([verdicts] if claims else []),
            f"**Command.** `{results['command']}`; all settings are in `study.json`.\n",
            f"**Machine and time.** {machine['cpu']}, {machine['cores']} cores, one thread for "
            f"each training, PyTorch {machine['torch']}; {results['seconds'] / 60:.0f} minutes of "
            "one core.\n",
            f"![{cls.title}]({cls.picture})\n",
        ]
        return "\n".join([*parts, *map(as_markdown, cls.all_tables(results))])


def run_study(
    study: Study,
    directory: Path,
    *,
    scale: str = "cpu",
    data_dir: str | None = None,
    workers: int = 2,
    engine: str = "local",
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a study, or continue one that was stopped, and write its files.

    Args:
        study: the study to run.
        directory: study directory; created if missing.
        scale: scale that the settings were made for.
        data_dir: folder of the named data sets' files.
        workers: processes at a time, of one thread each.
        engine: where they run: ``"local"``, ``"slurm"`` or ``"ray"``; see `engines`.
        quiet: show no progress.

    Returns:
        What ``results.json`` holds: ``name``, ``scale``, ``command``, ``study`` (its settings),
        ``machine``, what `Study.run` returns, and ``seconds`` of all cells.

    Raises:
        ValueError: the directory is that of another study, scale or settings.
        RunInUseError: another process is running it.
        CheckpointError: a file of the study is damaged.
        RuntimeError: some cells failed, after all others were computed.
        Interrupted: Ctrl-C or SIGTERM.
    """
    which, settings = {"name": study.name, "scale": scale}, asdict(study)
    record = directory / "study.json"
    directory.mkdir(parents=True, exist_ok=True)
    held = lock(directory)
    try:
        if record.exists():
            recorded = read_json(record)
            check_same(f"study {record}", {key: recorded.get(key) for key in which}, which, ())
        write_json(record, {**which, "settings": settings})
        with study.files(directory, data_dir) as files:
            workspace = Workspace(directory, files, workers=workers, engine=engine, quiet=quiet)
            found = study.run(workspace)
        results = {
            **which,
            "command": _command(study, scale),
            "study": settings,
            "machine": machine(),
            **found,
            "seconds": workspace.seconds,
        }
        write_json(directory / "results.json", results)
        with replaced(directory / "results.md") as page:
            page.write(study.page(results).encode())
        study.draw(results, directory / study.picture)
    finally:
        held.release()
    return results


def _command(study: Study, scale: str) -> str:
    """The command that runs a study."""
    words = ["sparsehyper", "study", study.name, "--out", "FOLDER"]
    if scale != "cpu":
        words += ["--scale", scale]
    seeds = getattr(study, "seeds", None)
    if seeds != getattr(study.at_scale(scale), "seeds", None):
        words += ["--seeds", str(seeds)]
    return " ".join(words)
