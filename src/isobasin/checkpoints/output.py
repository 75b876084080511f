"""Where output may go, and how it gets there: all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from isobasin import reads
from isobasin.checkpoints.companions import set_folder_mode, umask
from isobasin.checkpoints.files import real
from isobasin.checkpoints.temporary import calling, own_folder
from isobasin.errors import OutputError, first_line
from isobasin.space import check_space, full_disk, nearest_parent

T = TypeVar("T")

LOCK = ".lock"
"""Is in a folder while a process writes into it for long."""


def check_output(
    out: str | os.PathLike[str], inputs: Sequence[Path] = (), force: bool = False, needed: int = 0
) -> None:
    """Refuse an output folder that can't or must not be written, before any work.

    The output may not be, hold, or lie in a model that is being read (`isobasin.reads`). A new one may lie in what else
    is read, but none that is there is replaced.

    Args:
        out: The folder to be written; it may exist if it is empty.
        inputs: Further folders that are read as models are.
        force: Whether an existing folder may be replaced.
        needed: How many bytes it will take at least.

    Raises:
        OutputError: The folder exists, is a file, overlaps with an input, its parent isn't writable, or there is no
            space.
    """
    target = real(out)
    for item in (*inputs, *reads.MODELS, *(reads.OTHERS if os.path.lexists(out) else ())):
        _refuse_overlap(Path(out), target, Path(item))
    with disk_errors(target):
        if target.exists() and not target.is_dir():
            raise OutputError(f"{out}: is a file: name a folder that doesn't exist")
        if target.is_dir() and not force and any(target.iterdir()):
            raise OutputError(f"{out}: exists and isn't empty: name another folder, or replace it with --force")
        _check_parent(target)
        check_space(target, needed)


def write_file_atomically(path: Path, write: Callable[[Path], object], force: bool = False) -> None:
    """Write one file completely or not at all.

    Args:
        path: The file.
        write: Writes to the path that it is given, which has the name of `path` and lies in a folder beside it.
        force: Whether an existing file may be replaced.

    Raises:
        OutputError: The file exists, is a folder, or can't be written.
    """
    target = real(path)
    with disk_errors(target):
        if target.is_dir():
            raise OutputError(f"{path}: is a folder: name a file")
        if target.exists() and not force:
            raise OutputError(f"{path}: exists: name another file, or replace it with --force")
        _check_parent(target)
        with staged(target) as staging:
            write(staging)
            staging.chmod(0o666 & ~umask())  # safetensors would leave files that only the owner reads
            os.replace(staging, target)


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all, in the place of what is there.

    Raises:
        OutputError: It is a folder, or can't be written.
    """
    write_file_atomically(path, lambda staging: staging.write_bytes(text.encode()), force=True)


@contextmanager
def staged(target: Path) -> Generator[Path]:
    """A path of the name of `target` in a hidden folder beside it, which is removed in the end.

    Parents of `target` that aren't there are made, and removed again if the block raises.

    Raises:
        OutputError: The hidden folder can't be made.
    """
    with ExitStack() as stack:
        with disk_errors(target):
            stack.enter_context(_parents(target))
            folder = stack.enter_context(own_folder(target.parent, "partial"))
        yield folder / target.name


@contextmanager
def _parents(target: Path) -> Generator[None]:
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # another process has come to use one
            for folder in missing:
                folder.rmdir()
        raise


def install(staging: Path, target: Path, force: bool) -> None:
    """Rename a finished folder to its place.

    With `force` an existing folder is moved aside before and deleted after; it comes back if the rename
    fails, or at the next start if the process is killed in between. Otherwise only an empty folder is replaced.
    """
    if not (force and target.exists()):
        os.rename(staging, target)
        return
    with own_folder(target.parent, "replaced") as folder:
        aside = folder / target.name
        try:
            os.rename(target, aside)
            os.rename(staging, target)
        except BaseException:
            if aside.exists() and not target.exists():
                os.rename(aside, target)
            raise


def write_folder(
    out: str | os.PathLike[str],
    like: Path,
    fill: Callable[[Path], object],
    check: Callable[[Path], T],
    *,
    force: bool,
    needed: int | None = None,
) -> T:
    """Write a folder completely or not at all; if anything raises, what is there stays as it was.

    Args:
        out: The folder; its parents are created.
        like: The folder whose mode it gets.
        fill: Writes into the folder that it is given, which is hidden until all is done.
        check: Looks at the complete folder before it gets its name; an exception refuses it.
        force: Whether an existing folder may be replaced.
        needed: Its size in bytes, if that is known.

    Returns:
        What `check` returns.

    Raises:
        OutputError: There is no space, or a file can't be written.
    """
    target = real(out)
    with disk_errors(target):
        check_space(target, needed or 0)
    with staged(target) as staging, calling(staging, out):
        with disk_errors(target, needed):
            staging.mkdir()
            fill(staging)
        result = check(staging)
        with disk_errors(target, needed):
            set_folder_mode(staging, like)
            install(staging, target, force)
    return result


@contextmanager
def sole_writer(folder: Path) -> Generator[None, None, None]:
    """Make a folder and keep other processes from writing into it in the block; the lock dies with its process.

    Raises:
        OutputError: Another process is writing into it, or it can't be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, blocking=False)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            problem = "another process is writing into it: wait for it, or name another folder"
            raise OutputError(f"{folder}: {problem}") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def disk_errors(target: Path, needed: int | None = None) -> Generator[None, None, None]:
    """Turn the operating system's errors into OutputError; `needed` is the size of the output in bytes."""
    try:
        with full_disk(target, needed):
            yield
    except OSError as error:
        where = "" if error.filename is None else f" at {error.filename}"
        reason = error.strerror or first_line(error)
        raise OutputError(f"{target}: can't be written ({reason}{where}): check the folder") from error


def _refuse_overlap(out: Path, target: Path, item: Path) -> None:
    held = real(item)
    if target == held or held in target.parents or target in held.parents:
        raise OutputError(f"{out}: is, holds or lies in the input {item}: name a folder apart from it")
    # the files of a hub snapshot are links: replacing the folder they point into would delete them
    for child in item.iterdir() if item.is_dir() else ():
        if target in real(child).parents:
            raise OutputError(f"{out}: holds {real(child)} of the input {item}: name a folder apart from it")


def _check_parent(target: Path) -> None:
    """The nearest parent that exists is a folder in which one may write."""
    parent = nearest_parent(target)
    if not parent.is_dir():
        raise OutputError(f"{target}: {parent} is a file: name another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: no permission to write in {parent}: name another place")
