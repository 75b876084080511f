"""Folders for work in progress, which nobody needs to tidy up after: a killed process's are removed by the next one."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

from isobasin.errors import IsobasinError
from isobasin.space import TEMPORARY, full_disk

Role = Literal["partial", "replaced", "temporary"]

_NAME = re.compile(r"\.isobasin-(partial|replaced|temporary)-[0-9a-f]{16}")
# One is called so until it is locked, a moment later: what has been for hours is a killed process's.
_NEW, _HOURS = re.compile(r"\.isobasin-new-[0-9a-f]{16}"), 2
# In such a folder: who made it, a lock that dies with its process, and what the folder is for.
_OWNER, _LOCK, _CONTENT = "owner", "lock", "content"


@contextmanager
def temporary_folder() -> Generator[Path]:
    """An empty folder in the system's temporary directory, removed in the end.

    Raises:
        OutputError: There is no space, for the folder or for what is written into it in the block.
    """
    home = Path(tempfile.gettempdir())
    with full_disk(home / TEMPORARY), own_folder(home, "temporary") as folder:
        yield folder


@contextmanager
def calling(folder: Path, name: str | os.PathLike[str]) -> Generator[None]:
    """Let errors of ours say what a user knows, where they would name a folder of ours that will be gone.

    Args:
        folder: The folder, as messages spell it.
        name: What to call it.
    """
    try:
        yield
    except IsobasinError as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), os.fspath(name))) from error


@contextmanager
def own_folder(parent: Path, role: Role) -> Generator[Path]:
    """An empty folder inside a hidden one in `parent`, which is removed in the end, with what is still in it.

    Only its owner can enter the hidden folder. It is locked as long as the process lives: where that was killed, the
    next process that makes such a folder in `parent` removes it.
    """
    from filelock import FileLock

    _remove_orphans(parent)
    # Under a name that no other process looks for, until it is locked.
    letters = secrets.token_hex(8)
    making, folder = (parent / f".isobasin-{which}-{letters}" for which in ("new", role))
    lock = FileLock(making / _LOCK, blocking=False, thread_local=False)
    try:
        making.mkdir(mode=0o700)  # in here, for a signal may strike as soon as it is there
        with suppress(OSError, NotImplementedError):  # a file system without locks: nobody will remove the folder
            lock.acquire()
        (making / _OWNER).write_text(_host(), encoding="utf-8")
        (making / _CONTENT).mkdir()
        making.rename(folder)
        yield folder / _CONTENT
    finally:
        for place in (making, folder):
            shutil.rmtree(place, ignore_errors=True)
        lock.release()


@cache
def _remove_orphans(parent: Path) -> None:
    """Remove what killed processes of this user and this machine left in `parent`."""
    with suppress(OSError):
        for place in list(parent.iterdir()):
            with suppress(OSError, AttributeError):  # Windows has no user numbers
                if (_NAME.fullmatch(place.name) and _is_ours(place)) or _was_never_locked(place):
                    _remove_if_dead(place)


def _was_never_locked(place: Path) -> bool:
    """Whether this user's process was killed before a folder got its name and its owner."""
    if not _NEW.fullmatch(place.name):
        return False
    found = place.lstat()
    old = time.time() - found.st_mtime > _HOURS * 3600
    return old and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _is_ours(place: Path) -> bool:
    """Whether this user made a folder on this machine: locks of other machines may be invisible here."""
    try:
        found = place.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        owner = place / _OWNER
        return mine and stat.S_ISREG(owner.lstat().st_mode) and owner.read_text(encoding="utf-8") == _host()
    except (OSError, ValueError, AttributeError):  # Windows has no user numbers
        return False


def _remove_if_dead(place: Path) -> None:
    from filelock import FileLock, Timeout

    with suppress(Timeout, NotImplementedError), FileLock(place / _LOCK, blocking=False):
        if "-replaced-" in place.name:
            # Killed between two renames: what was to be replaced is not yet.
            for item in (place / _CONTENT).iterdir():
                if not os.path.lexists(place.parent / item.name):
                    item.rename(place.parent / item.name)
        shutil.rmtree(place, ignore_errors=True)


def _host() -> str:
    return platform.node()
