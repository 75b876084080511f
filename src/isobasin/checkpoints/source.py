"""From what a user names, a folder or a model on the hub, to a local folder."""

from __future__ import annotations

import os
from pathlib import Path

from isobasin.checkpoints.companions import modules
from isobasin.checkpoints.kinds import other_kind
from isobasin.errors import CheckpointError, first_line

_COMPANIONS = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "merges*", "README.md", "LICENSE*")
# a second copy of the weights, or another model's
_IGNORED = ("consolidated*", "*/*.safetensors", "*/*.bin", "training_args.bin", "optimizer.bin")


def resolve(source: str | os.PathLike[str], *, allow_pickle: bool = False) -> Path:
    """Find a checkpoint's folder, downloading it from the hub if it isn't there.

    Args:
        source: A local folder, or a hub id: `name` or `owner/name`.
        allow_pickle: Whether pickled weights may be downloaded where there are no others.

    Returns:
        The local folder.

    Raises:
        CheckpointError: It is a file, or neither a folder nor a model that the hub lets us have.
    """
    text = os.fspath(source)
    if text and os.path.isdir(text):
        return Path(text)
    if os.path.lexists(text):
        file = Path(text)
        problem = f"{text}: not a folder: pass the folder that holds config.json and the weights"
        raise CheckpointError(other_kind(file.parent, [file.name]) or problem)
    if not _is_hub_id(text):
        raise CheckpointError(f"{text!r}: no such folder: check the path")
    folder = _download(text, [*_COMPANIONS, "*.safetensors"], _IGNORED)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _download(text, [*_COMPANIONS, "*.bin"], _IGNORED)
    named = sorted(map(str, modules(folder)))
    if named:
        _download(text, [f"{module}/*" for module in named], ())
    return folder


def _is_hub_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return bool(text) and not text.startswith(".")


def _download(repo_id: str, patterns: list[str], ignored: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=list(ignored)))
    except Exception as error:  # the hub's client has no common base class
        raise CheckpointError(f"{repo_id}: is not a local folder, {_reason(repo_id, error)}") from error


def _reason(repo_id: str, error: Exception) -> str:
    """Why a model can't be had from the hub, and what to do."""
    from huggingface_hub import constants, errors

    advice = f"download it first with `hf download {repo_id}`, or check the path"
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repo_id}"
        return f"and the hub's model is gated: accept its terms at {page} and run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "and the hub has no such model: check the name, or run `hf auth login` if it is private"
    # the client says "not in the cache" both when it is offline and when the hub doesn't answer
    if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
        why = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        return f"and the hub can't be reached{why}: {advice}"
    why = f"{type(error).__name__}: {first_line(error)}"
    return f"and its download failed ({why}): {advice}"
