"""The boundary to other people's files: whatever libraries make of them is one line, and only files are opened."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from isobasin import checkpoints
from isobasin.errors import DataError, first_line, refusing

_LONGEST = 300


def reading(what: str, advice: str = "check the data") -> AbstractContextManager[None]:
    """Turn whatever a library raises over data into one line.

    Args:
        what: What is read or done, with the name of the file first, as in "rows.csv: can't be read as csv".
        advice: What to do.

    Raises:
        DataError: For every exception but our own, which say more, and those that end the program.
    """
    return refusing(DataError, lambda reason: f"{what} ({reason}): {advice}", _reason)


def _reason(error: BaseException) -> str:
    """What an exception says, on one line that fits a terminal; with its class where it alone says nothing."""
    cause = error.__cause__ if type(error).__module__.startswith("datasets") and error.__cause__ else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = first_line(cause)
    # `KeyError: 'x'`, `IndexError: 3`: the message is only the thing that isn't there.
    text = text if " " in text or text == type(cause).__name__ else f"{type(cause).__name__}: {text}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def regular_file(path: str | os.PathLike[str], most: int | None = None) -> Path:
    """The path of a file that can be read to its end: no folder, pipe or device.

    Args:
        path: What a user named; links are followed.
        most: Bytes that such a file may have.

    Raises:
        DataError: It is something else, can't be found, or is larger.
    """
    found = checkpoints.regular_file(path, DataError)
    if most is not None and found.st_size > most:
        raise DataError(f"{os.fspath(path)}: has {found.st_size} bytes, more than {most}: is it the right file?")
    return Path(path)
