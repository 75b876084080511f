"""From what a user names, a folder or a model on the hub, to a local folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from isobasin.checkpoints.companions import modules
from isobasin.checkpoints.hub import COMPANIONS, HubModel, headers_of
from isobasin.checkpoints.kinds import other_kind
from isobasin.checkpoints.reader import Checkpoint
from isobasin.errors import CheckpointError


def resolve(source: str | os.PathLike[str], *, allow_pickle: bool = False) -> Path:
    """Find a checkpoint's folder, downloading it from the hub if it isn't there.

    Args:
        source: A local folder, or a hub id: `name` or `owner/name`, with `@` and a revision after it or without.
        allow_pickle: Whether pickled weights may be downloaded where there are no others.

    Returns:
        The local folder.

    Raises:
        CheckpointError: It is a file, or neither a folder nor a model that the hub lets us have.
    """
    found = _named(os.fspath(source))
    if isinstance(found, Path):
        return found
    folder = found.download([*COMPANIONS, "*.safetensors"])
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = found.download([*COMPANIONS, "*.bin"])
    named = sorted(map(str, modules(folder)))
    if named:
        found.download([f"{module}/*" for module in named], ())
    return folder


def described(source: str | os.PathLike[str]) -> Path:
    """The folder that says what a checkpoint is: of a model on the hub no more than that is fetched.

    Raises:
        CheckpointError: As `resolve`.
    """
    found = _named(os.fspath(source))
    return found if isinstance(found, Path) else found.download(["*.json"])


@contextmanager
def headers_on_hub(source: str | os.PathLike[str]) -> Generator[Checkpoint | None]:
    """A model on the hub of which no values are fetched before some are read.

    None of a local folder, of a model that was fetched before, and of one that has no safetensors files.

    Raises:
        CheckpointError: It can't be found or read.
    """
    found = _named(os.fspath(source))
    with headers_of(found) if isinstance(found, HubModel) else nullcontext() as checkpoint:
        yield checkpoint


def _named(text: str) -> Path | HubModel:
    """The folder or the model on the hub that a text names; raises CheckpointError if it can be neither."""
    if text and os.path.isdir(text):
        return Path(text)
    if os.path.lexists(text):
        file = Path(text)
        problem = f"{text}: not a folder: pass the folder that holds config.json and the weights"
        raise CheckpointError(other_kind(file.parent, [file.name]) or problem)
    found = HubModel.parsed(text)
    if found is None:
        raise CheckpointError(f"{text!r}: no such folder: check the path")
    return found
