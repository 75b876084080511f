"""Files that somebody else wrote: only regular ones are opened, only so much is read, and a change is noticed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from isobasin.errors import CheckpointError, IsobasinError, first_line

JSON_LIMIT = 64 * 2**20
"""Bytes of the largest JSON file that is read: the index of a model with half a million tensors fits."""

# Where a path became a pipe since it was looked at, opening it must not wait for a writer.
_UNWAITING = getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class WatchedFile:
    """A file as it was when it was first looked at; it must be the same at every later look.

    Attributes:
        path: Where it lies.
        size: Its bytes.
        mode: Its permissions.
        stamp: What changes when it is replaced, rewritten or cut: device, inode, size and time of the last change.
    """

    path: Path
    size: int
    mode: int
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, error: type[IsobasinError] = CheckpointError) -> WatchedFile:
        """Look at a file.

        Raises:
            CheckpointError: Or `error`: see `regular_file`.
        """
        found = regular_file(path, error)
        return cls(path, found.st_size, stat.S_IMODE(found.st_mode) & 0o777, _stamp(found))

    @contextmanager
    def open(self) -> Generator[BinaryIO]:
        """The file, without a buffer, for reading; compared before and after.

        Raises:
            CheckpointError: It has changed, or can't be opened.
        """
        try:
            file = open(self.path, "rb", buffering=0, opener=_open)  # noqa: SIM115
        except FileNotFoundError as problem:
            raise self.changed() from problem
        except OSError as problem:
            raise _unreadable(self.path, problem, CheckpointError) from problem
        with file:
            self._compare(os.fstat(file.fileno()))
            yield file
            self._compare(os.fstat(file.fileno()))
        self.check()

    def check(self) -> None:
        """Raise CheckpointError if the path doesn't lead to the same file with the same content any more."""
        try:
            found = os.stat(self.path)
        except OSError as problem:
            raise self.changed() from problem
        self._compare(found)

    def changed(self) -> CheckpointError:
        """What to say of a file that isn't what it was."""
        return CheckpointError(f"{self.path}: changed while it was being read: run again when it is complete")

    def fill(self, file: BinaryIO, start: int, buffer: memoryview) -> None:
        """Read a whole buffer from byte `start` of the open file on; raises CheckpointError where it ends early."""
        file.seek(start)
        done = 0
        while done < len(buffer):
            count = file.readinto(buffer[done:])  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise self.changed()
            done += count

    def _compare(self, found: os.stat_result) -> None:
        if _stamp(found) != self.stamp:
            raise self.changed()


def regular_file(path: str | os.PathLike[str], error: type[IsobasinError] = CheckpointError) -> os.stat_result:
    """What the system says of a file, which is neither a folder nor a pipe, a socket or a device; links are followed.

    Nothing is opened, so that nothing can block: call it before any path of a user's is read.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        CheckpointError: Or `error`: it is missing or something else, or its folder can't be entered.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as problem:
        raise _unreadable(path, problem, error) from problem
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise error(f"{os.fspath(path)}: is {kind}, not a file: name a file")
    return found


def read_object(file: WatchedFile) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: It is too large, changes meanwhile, or holds something else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file.path}: a JSON {type(content).__name__}, not an object: restore it")
    return content


def bounded(file: WatchedFile) -> WatchedFile:
    """The file, if it isn't too large for JSON.

    Raises:
        CheckpointError: It is.
    """
    if file.size > JSON_LIMIT:
        limit = f"{file.size / 1e6:.0f} MB of JSON, more than the {JSON_LIMIT / 1e6:.0f} MB that are read"
        raise CheckpointError(f"{file.path}: {limit}: restore the file")
    return file


def read_json(file: WatchedFile) -> Any:
    """What a JSON file holds; of a name that comes twice the last entry counts, as in transformers.

    Raises:
        CheckpointError: It is too large, changes meanwhile, or is no JSON.
    """
    text = bytearray(bounded(file).size)
    with file.open() as opened:
        file.fill(opened, 0, memoryview(text))
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{file.path}: not valid JSON ({first_line(problem)}): restore the file") from problem


def real(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, through all links; links in a circle lead to themselves (`Path.resolve` fails on them)."""
    return Path(os.path.realpath(path))


def leads_outside(folder: Path, path: Path) -> Path | None:
    """Where a link leads that leaves its checkpoint: neither inside `folder` nor, of a hub snapshot, to its blobs.

    Args:
        folder: The checkpoint.
        path: Something in it, which need not exist.

    Returns:
        The place outside, or None.
    """
    home, target = real(folder), real(path)
    if home in target.parents:
        return None
    cached = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    return None if cached else target


def inside(folder: Path, path: Path) -> Path:
    """The path, if it doesn't lead out of its checkpoint.

    Raises:
        CheckpointError: It is a link to another place.
    """
    target = leads_outside(folder, path)
    if target is not None:
        raise CheckpointError(f"{path}: a link to {target}, outside the checkpoint: put a copy in its place")
    return path


def entries(folder: Path) -> list[str]:
    """Names of what is in a folder, in order.

    Raises:
        CheckpointError: There is no such folder, or no permission to read it.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise CheckpointError(f"{folder}: no such folder: check the path") from problem
    except (OSError, ValueError) as problem:
        raise _unreadable(folder, problem, CheckpointError) from problem


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _UNWAITING)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: str | os.PathLike[str], problem: Exception, error: type[IsobasinError]) -> IsobasinError:
    name = os.fspath(path)
    if isinstance(problem, (FileNotFoundError, NotADirectoryError)):
        return error(f"{name}: the file is missing: check the path, or download it again")
    if isinstance(problem, PermissionError):
        return error(f"{name}: no permission to read it: ask its owner, or change its mode")
    reason = getattr(problem, "strerror", None) or first_line(problem)
    return error(f"{name}: can't be read ({reason}): check the file")
