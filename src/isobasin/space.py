"""A disk that is full, or takes no such file: who meets it, and what to say of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from isobasin.errors import OutputError
from isobasin.text import size

TEMPORARY = ".isobasin-temporary-"
"""How folders for temporary files are called; random letters follow."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
# How safetensors says what the operating system did.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def check_space(target: Path, needed: int) -> None:
    """Raise OutputError if `needed` bytes and 1 % don't fit beside `target`."""
    if needed * 1.01 > _free(target):
        raise _no_space(target, needed)


@contextmanager
def full_disk(target: Path, needed: int | None = None) -> Generator[None]:
    """Say in a line that there is no space, whoever finds it out.

    Args:
        target: What is written, or where.
        needed: Its size in bytes, if that is known.

    Raises:
        OutputError: There is no space; or the system refused what safetensors did, which is no OSError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _is_full(error):
            raise _no_space(target, needed) from error
        refused = _NUMBER.search(str(error)) if isinstance(error, SafetensorError) else None
        if refused is None:
            raise
        problem = f"can't be written ({os.strerror(int(refused[1]))})"
        raise OutputError(f"{_temporary(target) or target}: {problem}: check the folder") from error


def nearest_parent(target: Path) -> Path:
    """The folder above that is there."""
    return next(folder for folder in (target.parent, *target.parents) if folder.exists())


def _is_full(error: Exception) -> bool:
    """Whether an error says so by its number, or in words: `shutil.copytree`'s and safetensors' have no number."""
    words = (text for code in _FULL for text in (f"os error {code})", f"[Errno {code}]"))
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in words)


def _no_space(target: Path, needed: int | None) -> OutputError:
    takes = "" if needed is None else f"the output takes {size(needed)}, "
    home = _temporary(target)
    if home is not None:
        advice = f"{size(_free(target))} are free: make room, or name another folder in TMPDIR"
        return OutputError(f"{home}: no space left for temporary files: {takes}{advice}")
    free = f"{size(_free(target))} are free in {_disk(target)}"
    return OutputError(f"{target}: no space left: {takes}{free}: make room")


def _temporary(target: Path) -> Path | None:
    """The folder for temporary files that something lies in."""
    return next((place.parent for place in (target, *target.parents) if place.name.startswith(TEMPORARY)), None)


def _disk(target: Path) -> Path:
    """Where the disk begins that something would lie on: its own folders may be gone when a user reads of them."""
    there = nearest_parent(target).absolute()
    return next(folder for folder in (there, *there.parents) if folder.parent == folder or folder.is_mount())


def _free(target: Path) -> int:
    return shutil.disk_usage(nearest_parent(target)).free
