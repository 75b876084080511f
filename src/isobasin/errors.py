"""The errors that isobasin raises on purpose, and its warnings.

Every message is one line that names the thing (file, tensor, layer, shapes) and what to do. The command
line prints it on stderr and exits with 2; from Python each error can be caught by its class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

BARRIER_EXTRA = 'pip install "isobasin[barrier]"'
"""What brings the libraries for data, images, figures and the report page."""

EXPERIMENT_EXTRA = 'pip install "isobasin[experiment]"'
"""What brings those for training as well."""

DEMO_EXTRA = 'pip install "isobasin[demo]"'
"""What brings all that the demonstration needs."""

# Letters of a wrong value that are repeated.
_SHOWN = 80


class IsobasinError(Exception):
    """Base of every error that isobasin raises on purpose."""


class ChoiceError(IsobasinError, ValueError):
    """There is nothing of this name to choose."""


class CheckpointError(IsobasinError):
    """A checkpoint can't be found or read: folder, config, index, header or file."""


class TensorError(CheckpointError):
    """A tensor is missing, unexpected, misshapen, of an unusable type, or not finite."""


class ArchitectureError(IsobasinError):
    """A model type is unknown, a configuration is not supported, or two models don't match."""


class OutputError(IsobasinError):
    """The output can't be written: it exists, lies in an input, or there is no space."""


class AlignmentError(IsobasinError):
    """An alignment can't be read, or doesn't fit the model it is applied to."""


class DataError(IsobasinError):
    """Data can't be found or read, lack a column, or don't fit the model."""


class ConfigurationError(IsobasinError):
    """An experiment's configuration can't be found or read, or an entry of it is wrong."""


class TrainingError(IsobasinError):
    """Nothing can be trained with these settings."""


class RecordError(IsobasinError):
    """Records of a measurement can't be read, or belong to another run."""


class VerificationError(IsobasinError):
    """The moved model doesn't compute what the original computes; nothing was written."""


class DependencyError(IsobasinError):
    """An optional package or device that was asked for is not there."""


class IsobasinWarning(UserWarning):
    """Something was done that the user may want to know of; the command line prints it as a line on stderr."""


def warn(message: str) -> None:
    """Say something that isn't an error, in one line that names the thing.

    From Python it is a warning of the class `IsobasinWarning`.
    """
    warnings.warn(message, IsobasinWarning, stacklevel=3)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none; of pydantic's errors the first problem."""
    problems: Any = getattr(error, "errors", None)
    if type(error).__name__ == "ValidationError" and problems is not None:
        return problem_in_words(problems()[0])
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def problem_in_words(problem: Mapping[str, Any]) -> str:
    """One of the problems that a `pydantic.ValidationError` lists: where it is, what is wrong, and what was given."""
    where, given = ".".join(map(str, problem["loc"])), repr(problem["input"])
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "value_error":
        found = str(problem["ctx"]["error"])
    else:
        found = problem["msg"][:1].lower() + problem["msg"][1:]
        # Text that is no JSON is the whole of it, and what has entries is long.
        short = problem["type"] != "json_invalid" and given[:1] not in "{[" and len(given) <= _SHOWN
        found += f", not {given}" if short else ""
    return f"{where}: {found}" if where else found


def described(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


@contextmanager
def about(source: str) -> Generator[None]:
    """Say in every refusal which checkpoint it is about."""
    try:
        yield
    except (ArchitectureError, TensorError) as error:
        raise type(error)(f"{source}: {error}") from error


@contextmanager
def needing(what: str, extra: str = BARRIER_EXTRA) -> Generator[None]:
    """Say of a package that isn't there what needs it, such as "figures need matplotlib", and what brings it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == __package__:
            raise  # ours is there: what is wrong with it is no missing package
        raise DependencyError(f"{what}: {extra}") from error


@contextmanager
def refusing(
    kind: type[IsobasinError], said: Callable[[str], str], reason: Callable[[BaseException], str] = described
) -> Generator[None]:
    """Turn whatever a library raises inside into one line; our own errors say more, and pass.

    Args:
        kind: What is raised instead.
        said: The message, of why.
        reason: Why, of what was raised.
    """
    try:
        yield
    except IsobasinError:
        raise
    except BaseException as error:
        # What panics of libraries in Rust become is no Exception, and its class can't be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(said(reason(error))) from error
