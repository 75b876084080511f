"""The boundary to other people's files: whatever libraries make of them is one line, and only files are opened."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from isobasin import checkpoints
from isobasin.checkpoints.files import first_line
from isobasin.errors import DataError, IsobasinError

_LONGEST = 300


@contextmanager
def reading(what: str, advice: str = "check the data") -> Generator[None]:
    """Turn whatever a library raises over data into one line.

    Args:
        what: What is read or done, with the name of the file first, as in "rows.csv: can't be read as csv".
        advice: What to do.

    Raises:
        DataError: For every exception but our own, which say more, and those that end the program.
    """
    try:
        yield
    except IsobasinError:
        raise
    except Exception as error:
        raise DataError(f"{what} ({_reason(error)}): {advice}") from error
    except BaseException as error:
        # What panics of libraries in Rust become; it is no Exception, and its class can't be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what} ({_reason(error)}): {advice}") from error


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
