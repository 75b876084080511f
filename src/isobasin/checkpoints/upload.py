"""Finished folders on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from isobasin.beside import CARD
from isobasin.errors import IsobasinError, OutputError, first_line


def check_repo(repo: str) -> None:
    """Refuse what can be no place on the hub, before any work.

    Raises:
        IsobasinError: It is no repository's id, or the hub may not be asked.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise IsobasinError(f"{repo!r} is no id of a repository on the hub: write OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise IsobasinError(f"{repo}: can't be uploaded to, as HF_HUB_OFFLINE is set: unset it, or write a folder only")


def push_to_hub(folder: str | os.PathLike[str], repo: str, *, private: bool = True) -> str:
    """Upload a folder that isobasin wrote to a repository on the Hugging Face hub, in one commit.

    The repository is made if it isn't there; whether an existing one is private stays as it is, and files of other
    names stay in it. Models that its card names by local paths, which the hub refuses, are left out of its metadata.

    Args:
        folder: The folder.
        repo: Its id: "owner/name", or "name" for one of your own.
        private: Whether a new repository is private.

    Returns:
        Where it is.

    Raises:
        IsobasinError: The id is none, or the hub may not be asked.
        OutputError: There is no such folder, or the hub refuses it.
    """
    check_repo(repo)
    path = Path(folder)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise OutputError(f"{path}: there is nothing to upload: name a folder that was written")
    from huggingface_hub import CommitOperationAdd, HfApi

    def content(file: Path) -> Any:
        return _card(file) if file.relative_to(path) == Path(CARD) else os.fspath(file)

    try:
        api = HfApi(library_name="isobasin")
        place = api.create_repo(repo, private=private, exist_ok=True)
        added = [CommitOperationAdd(file.relative_to(path).as_posix(), content(file)) for file in files]
        api.create_commit(place.repo_id, added, commit_message="Written by isobasin")
    except Exception as error:  # the hub's client has no common base class
        why = f"{type(error).__name__}: {first_line(error)}"
        advice = f"run `hf auth login` if you aren't logged in, then `hf upload {repo} {path}`"
        raise OutputError(f"{path}: is written, and can't be uploaded to {repo} ({why}): {advice}") from error
    return str(place)


def _card(file: Path) -> bytes:
    """A model card without the models that are no ids of the hub."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(file)
    data: Any = card.data
    named: Any = data.base_model
    bases: list[str] = [named] if isinstance(named, str) else named or []
    data.base_model = [base for base in bases if not base.startswith((".", "/"))] or None
    return str(card).encode()
