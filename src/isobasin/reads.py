"""What is being read, so that nothing is written over it: `isobasin.checkpoints.check_output` asks here."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

MODELS: list[Path] = []
"""Folders of models: nothing is written over one, into it, or around it."""

OTHERS: list[Path] = []
"""Whatever else is read: no folder that is there and overlaps with it is replaced."""


@contextmanager
def reading(folder: Path) -> Generator[None]:
    """Keep a model's folder in the block."""
    with _listed(MODELS, [folder]):
        yield


@contextmanager
def keeping(*read: str | os.PathLike[str] | None) -> Generator[None]:
    """Keep files and folders in the block.

    Args:
        read: Paths, and whatever else a user may give in their place: what isn't there is left out.
    """
    with _listed(OTHERS, (Path(path) for path in read if path is not None and os.path.lexists(path))):
        yield


@contextmanager
def _listed(kept: list[Path], paths: Iterable[Path]) -> Generator[None]:
    found = list(paths)
    kept.extend(found)
    try:
        yield
    finally:
        for path in found:
            kept.remove(path)
