"""What happens when something goes wrong: one line on stderr and an exit code, never a traceback.

Exit codes: 2 for whatever the user can mend, 70 for a bug, 130 after Ctrl-C, 128 + n after signal n.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Generator, Sequence

import typer

from isobasin.cli.console import DEBUG, complain, complain_in_full, debugging, show_json
from isobasin.errors import IsobasinError
from isobasin.signals import Terminated, ending, received, stop_if_asked
from isobasin.text import one_line

USER_ERROR, BUG, CLOSED_PIPE = 2, 70, 141
_NO_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory")


@contextlib.contextmanager
def reported(words: Sequence[str] = ()) -> Generator[None]:
    """Turn every failure inside into one line on stderr and an exit code; with --json into an object on stdout, too.

    Args:
        words: The command line.
    """
    try:
        try:
            yield
            stop_if_asked()
        finally:
            # Here a closed pipe or a full disk can be handled; at exit Python would complain of it.
            sys.stdout.flush()
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, Terminated) as error:
        message, code = _explained(error)
        if debugging():
            complain_in_full(traceback.format_exc())
        if message:
            complain(message)
            if "--json" in words:
                _complain_as_json(error, message, code, words)
        raise typer.Exit(code) from error


def _complain_as_json(error: BaseException, message: str, code: int, words: Sequence[str]) -> None:
    """Say the same as JSON, with stdout as it may be."""
    command = next((word for word in words if not word.startswith("-")), None)
    with contextlib.suppress(OSError):
        show_json({"error": {"type": type(error).__name__, "message": one_line(message), "exit_code": code}}, command)
        sys.stdout.flush()


def _explained(error: BaseException) -> tuple[str, int]:
    """What to say of a failure, if anything, and the exit code."""
    number = received() or (signal.SIGINT if isinstance(error, (KeyboardInterrupt, typer.Abort)) else None)
    if number is not None:
        return ending(number)
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return "", CLOSED_PIPE
    if isinstance(error, IsobasinError):
        return str(error), USER_ERROR
    if isinstance(error, OSError):
        if error.filename is None:
            _drop_stdout()
        return _described(error), USER_ERROR
    if _out_of_memory(error):
        return _memory(error), USER_ERROR
    if isinstance(error, RecursionError):
        return f"a file is nested too deeply ({error})", USER_ERROR
    # Typer's exceptions have moved between click and its own copy of it: what they can do tells them apart.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        return _usage(error, usage()), USER_ERROR
    hint = f"this is a bug in isobasin; run with {DEBUG}=1 to see where"
    return f"unexpected {type(error).__name__}: {error} ({hint})", BUG


def _out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch had no room; torch says so by words alone."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _memory(error: BaseException) -> str:
    """How much more memory was asked for, if that is known."""
    asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
    amount = "" if asked is None else f": {asked[1]} more would be needed"
    what = "--device cpu or a smaller model" if "CUDA" in str(error) else "a smaller model"
    return f"out of memory{amount}; use {what}, or fewer and shorter examples at once"


def _described(error: OSError) -> str:
    """An error of the operating system in words."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _usage(error: BaseException, message: str) -> str:
    """A wrong command line, and where to read about the right one."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "isobasin"
    # The libraries that look at values say more often than once that one is wrong.
    message = message.removeprefix("Invalid value: ").replace("': Value error, ", "': ")
    return f"{message.rstrip('.')}; see `{path} --help`"


def _drop_stdout() -> None:
    """Send what is still in stdout's buffer nowhere: its flush at exit would fail again."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
