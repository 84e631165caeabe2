"""Hugging Face's hub: download and upload of directories; needs the extra ``hub``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from sparsehyper._util.extras import require


def downloaded(name: str | PathLike[str], files: Sequence[str], **where: Any) -> Path:
    """The local directory of a model: ``name`` itself, or the hub's cache of that repository.

    Args:
        name: a directory, or a repository of the hub as ``"owner/name"``.
        files: the files that are needed.
        **where: arguments of ``huggingface_hub.snapshot_download``, such as ``revision``.

    Raises:
        FileNotFoundError: ``name`` looks like a directory, and there is none.
        OSError: whatever the hub answers.
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        return path
    if text.count("/") > 1 or text.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"there is no directory {text!r}; a repository of the hub is named 'owner/name'"
        )
    hub = require("huggingface_hub", "hub")
    return Path(hub.snapshot_download(text, allow_patterns=list(files), **where))


def upload(
    folder: Path,
    repo_id: str,
    *,
    card: str,
    keep: Callable[[str], bool],
    message: str,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool | None,
) -> str:
    """Upload a folder in one commit, to a repository that is made if there is none.

    Args:
        folder: the folder.
        repo_id: the repository, as ``"owner/name"``.
        card: name of the model card.
        keep: whether a model card that the repository has stays, by its text.
        message: message of the commit.
        private, token, branch, create_pr: as ``push_to_hub`` of ``huggingface_hub`` takes them.

    Returns:
        The address of the commit.
    """
    api = require("huggingface_hub", "hub").HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if branch is not None and not create_pr:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    there = api.file_exists(repo_id, card, revision=branch)
    if there:
        found = Path(api.hf_hub_download(repo_id, card, revision=branch))
        there = keep(found.read_text("utf-8", "replace"))
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=message,
        revision=branch,
        create_pr=create_pr,
        ignore_patterns=[card] if there else None,
    )
    return str(commit.commit_url)
