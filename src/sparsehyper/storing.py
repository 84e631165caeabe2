"""The part of `HyperNetwork` that saves and loads it, on disk and on Hugging Face's hub."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from sparsehyper import hub, saving
from sparsehyper._util.checks import check_choice
from sparsehyper._util.extras import MissingExtraError
from sparsehyper._util.files import CheckpointError, replaced
from sparsehyper._util.text import printable
from sparsehyper.conditioning import Conditioner, conditioner_from_config
from sparsehyper.generators import generator_from_config
from sparsehyper.heads import SolvedHead, head_from_config
from sparsehyper.recipes import Recipe, build
from sparsehyper.tasks import NamedTasks

FROZEN = ("reference", "store")
_SETTINGS = ("others", "base", "init", "scale", "norm_stats", "noise", "dropout", "seed")
_MOST_NAMES = 20  # tasks that a model card lists
_MARK = "<!-- sparsehyper "  # before the digest of a model card, by which it is known as ours


class Stored(NamedTasks):
    """A hypernetwork's directory: ``config.json``, ``model.safetensors`` and a model card."""

    settings: dict[str, Any]
    _given: dict[str, str]
    _recipe: Recipe | None

    @abstractmethod
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def save(
        self,
        directory: str | PathLike[str],
        *,
        frozen: str = "reference",
        overwrite: bool = False,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors`` to a directory.

        The directory appears complete or not at all. Written over, it holds the old hypernetwork or
        the new one at every moment, even if the process dies.

        Args:
            directory: the directory.
            frozen: what to do with values that training has not changed: frozen parameters of the
                target or of a conditioner's encoder, and a pretrained base. ``"reference"`` writes
                their fingerprints only, so that `load` needs the same module again. ``"store"``
                writes the values.
            overwrite: replace a hypernetwork that was saved there, as after every epoch.

        Raises:
            FileExistsError: ``directory`` exists; with ``overwrite``, if it holds other files.
            ValueError: ``frozen`` is neither.
        """
        check_choice("frozen", frozen, FROZEN)
        config = {
            **self.settings,
            "conditioner": self.conditioner.to_config(),
            "target": self._recipe and {**self._recipe, "dtype": str(self.target.dtype)},
        }
        given = self._given if frozen == "reference" else {}
        saving.save(directory, config, self, given, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        directory: str | PathLike[str],
        target: nn.Module | None = None,
        conditioner: Conditioner | None = None,
        device: torch.device | str | None = None,
        *,
        copy: bool = True,
    ) -> Self:
        """Load what ``save`` wrote; parameters that were frozen are frozen again.

        Args:
            directory: the directory.
            target: a module like the one that the hypernetwork was made with. Its values are
                replaced by the saved ones, except those saved by reference, which must be equal.
                None builds it from the files: an ``nn.Sequential`` of PyTorch's layers, a residual
                network of the command line or a model of transformers, if the files hold all
                values.
            conditioner: a conditioner like the one that it was made with, if that holds a network
                of your own; its values do not matter.
            device: device to put it on; None for that of ``target``.
            copy: as `HyperNetwork` takes it.

        Raises:
            FileNotFoundError: no such directory, or it lacks a file.
            ValueError: a damaged file, a target with other parameters or other frozen values,
                another conditioner, or no ``target`` where the files do not suffice.
        """
        return cls._load(directory, target, conditioner, device, copy=copy)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        figures: Mapping[str, object] | None = None,
        frozen: str = "store",
    ) -> None:
        """Save all of it, with a model card, as models of Hugging Face's libraries are.

        It replaces a hypernetwork that was saved there, and its model card unless you edited it;
        then your card stays as it is, with a warning where there are `figures`.

        Args:
            save_directory: the directory.
            figures: what was measured, for the card: ``{"test accuracy": 0.93}``.
            frozen: as `save` takes it.
        """
        self.save(save_directory, frozen=frozen, overwrite=True)
        card = Path(save_directory, saving.CARD_FILE)
        if card.exists() and not _is_ours(card.read_text("utf-8", "replace")):
            _warn_kept(str(card), figures)
            return
        with replaced(card) as file:
            file.write(self._card(Path(save_directory).name, figures or {}).encode())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        target: nn.Module | None = None,
        conditioner: Conditioner | None = None,
        device: torch.device | str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a hypernetwork from a directory or from Hugging Face's hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory, or a repository as ``"owner/name"``, which
                needs the extra ``hub``.
            target, conditioner, device: as `load` takes them.
            revision: branch, tag or commit of the repository.
            token: token for the hub; None for the one that you logged in with.
            cache_dir: folder of the hub's cache; None for the usual one.
            force_download: download files that are in the cache.
            local_files_only: use the cache alone, as ``HF_HUB_OFFLINE=1`` does.

        Raises:
            FileNotFoundError: no such directory, or it lacks a file.
            OSError: the hub has no such repository or revision, or cannot be reached.
            ValueError: as `load`.
        """
        directory = hub.downloaded(
            pretrained_model_name_or_path,
            [saving.CONFIG_FILE, saving.WEIGHTS_FILE],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls._load(directory, target, conditioner, device, follow_links=True).eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a hypernetwork",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        figures: Mapping[str, object] | None = None,
    ) -> str:
        """Upload all of it to Hugging Face's hub in one commit; needs the extra ``hub``.

        A model card that is there is treated as `save_pretrained` does.

        Args:
            repo_id: the repository, as ``"owner/name"``; it is made if there is none.
            commit_message: message of the commit.
            private: whether a new repository is private.
            token: token for the hub; None for the one that you logged in with.
            branch: branch to write to; None for the main one.
            create_pr: open a pull request instead.
            figures: as `save_pretrained` takes them.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "model")
            self.save(directory, frozen="store")
            card = directory / saving.CARD_FILE
            card.write_text(self._card(repo_id, figures or {}), encoding="utf-8")

            def keep(text: str) -> bool:
                ours = _is_ours(text)
                if not ours:
                    _warn_kept(f"the {card.name} of {repo_id}", figures)
                return not ours

            return hub.upload(
                directory,
                repo_id,
                card=card.name,
                keep=keep,
                message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )

    @classmethod
    def _load(
        cls,
        directory: str | PathLike[str],
        target: nn.Module | None,
        conditioner: Conditioner | None,
        device: torch.device | str | None,
        *,
        copy: bool = True,
        follow_links: bool = False,
    ) -> Self:
        """As `load`; with ``follow_links`` files may be links, as in the hub's cache."""
        config, state = saving.read(directory, follow_links=follow_links)
        try:
            layout = {name: torch.Size(shape) for name, shape in config["layout"]}
            described = config["conditioner"]
            generator = generator_from_config(config["generator"])
            settings = {name: config[name] for name in _SETTINGS}
            settings["head"] = head_from_config(config.get("head"))  # older files have none
            frozen, given = set(config["frozen"]), dict(config.get("given", {}))  # older: none
            notes = saving.notes_of(config)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(directory, error) from error
        if conditioner is None:
            try:
                conditioner = conditioner_from_config(described)
            except (KeyError, TypeError) as error:
                raise _damaged(directory, error) from error
        if conditioner.to_config() != described:
            raise ValueError(
                f"`conditioner` does not fit: {str(directory)!r} was saved with {described}, this "
                f"is {conditioner.to_config()}"
            )
        if target is None:
            target = _built_target(directory, config.get("target"), given)
        hnet = cls(target, generator, conditioner, generate=layout, copy=copy, **settings)
        head, bias = hnet.head, state.get("head.bias")
        if isinstance(head, SolvedHead) and bias is not None and bias.ndim == 2:
            head.widen(bias.shape[1])  # new tasks may have had more classes
        for name, parameter in hnet.named_parameters() if not copy else ():
            if not parameter.requires_grad and name in state:  # the target's own values stay
                parameter.data = parameter.data.clone()
        if device is not None:
            hnet = hnet.to(device)
        saving.load_state(hnet, state, Path(directory, saving.WEIGHTS_FILE), given, notes)
        for name, parameter in hnet.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return hnet

    def _card(self, name: str, figures: Mapping[str, object]) -> str:
        """The text of the model card."""
        names = self.task_names[:_MOST_NAMES]
        more = len(self.task_names) - len(names)
        tasks = ", ".join(map(_quoted, names)) + (f" and {more:,} more" if more else "")
        weights = sum(p.numel() for p in self.parameters() if p.requires_grad)
        measured = [f"| {_cell(what)} | {_cell(value)} |" for what, value in figures.items()]
        target = "" if self._recipe else ", target=module"
        task = repr(names[0]) if len(self.task_names) > 1 else ""
        text = "\n".join(
            [
                "---",
                "library_name: sparsehyper",
                "tags: [hypernetwork, pytorch]",
                "---",
                f"# {_cell(name)}",
                "",
                "A hypernetwork of [sparsehyper](https://github.com/sparsehyper/sparsehyper): one",
                "network that generates the parameters of a model for each task.",
                "",
                "| | |",
                "|---|---|",
                f"| tasks | {tasks or 'none by name'} |",
                f"| generated parameters a task | {self.target.numel:,} |",
                f"| trained weights | {weights:,} |",
                f"| generator | `{generator_from_config(self.settings['generator'])}` |",
                f"| base | {self.settings['base']} |",
                *measured,
                "",
                "```python",
                "from sparsehyper import HyperNetwork",
                "",
                f"hnet = HyperNetwork.from_pretrained({name!r}{target})",
                f"model = hnet.materialize({task})  # an ordinary module",
                "```",
                "",
                "The model of a task:",
                "",
                *(f"    {line}" for line in self.target.printed().splitlines()),
                "",
            ]
        )
        return _marked(text)


def _marked(card: str) -> str:
    return f"{card}\n{_MARK}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def _is_ours(card: str) -> bool:
    """Whether a model card is still as `_marked` wrote it."""
    return card == _marked(card.rpartition(f"\n{_MARK}")[0])


def _warn_kept(card: str, figures: Mapping[str, object] | None) -> None:
    if figures:
        warnings.warn(
            f"{card} is not as this version of sparsehyper wrote it, so it stays as it is, without "
            "the `figures`; add them there, or delete it to have a new one",
            stacklevel=3,
        )


def _quoted(name: str) -> str:
    return f"`{_cell(name).replace('`', ' ')}`"


def _cell(value: object) -> str:
    """Text in a cell of a table."""
    return printable(value).replace("|", "\\|")


def _built_target(
    directory: str | PathLike[str], recipe: Any, given: Mapping[str, str]
) -> nn.Module:
    if recipe is None or given:
        why = (
            f"{len(given)} of its tensors, such as {next(iter(given))!r}, are not in the files"
            if given
            else "the files do not say how to build it, as those of an nn.Sequential of PyTorch's "
            "layers, of a residual network of sparsehyper and of a model of transformers do"
        )
        raise ValueError(
            f"`target` is needed to load {str(directory)!r}: {why}; give a module like the one "
            "that the hypernetwork was made with"
            + (', or save with `frozen="store"`' if given else "")
        )
    try:
        return build(recipe)
    except MissingExtraError:
        raise
    except Exception as error:  # a model of transformers may raise anything
        raise _damaged(directory, error) from error


def _damaged(directory: str | PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(f"{Path(directory, saving.CONFIG_FILE)} is damaged: {error!r}")
