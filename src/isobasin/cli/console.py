"""Where the command line prints: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from itertools import accumulate
from threading import Event, Thread
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Span, Text

from isobasin.downloads import LISTENER
from isobasin.errors import IsobasinWarning
from isobasin.plain import as_json
from isobasin.recipes import followed
from isobasin.signals import stop_if_asked
from isobasin.text import one_line, printable

DEBUG = "ISOBASIN_DEBUG"

SCHEMA_VERSION = 1
"""Of what `--json` prints: it rises when something there is removed, renamed or changes its meaning."""

# Seconds before the first line of progress where there is no terminal for bars, and between two of them.
_FIRST, _EVERY = 10.0, 30.0
# In a pipe nothing needs to fit a screen: wide enough that no table or sentence is ever folded.
_PIPE_WIDTH = 1000
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


class _Console(Console):
    """Prints names and paths as they are, never as markup, and what isn't seen of them written out."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        return super().render(_seen(renderable) if isinstance(renderable, Text) else renderable, options)

    def on_broken_pipe(self) -> None:
        # Rich would end the program with exit code 1.
        raise BrokenPipeError


def _seen(text: Text) -> Text:
    """The same text and styles, what isn't seen written out."""
    plain = text.plain
    if plain.isprintable():
        return text
    found = text.copy()
    found.plain = printable(plain)
    moved = list(accumulate((len(printable(c)) for c in plain), initial=0))
    found.spans = [Span(moved[start], moved[end], style) for start, end, style in text.spans]
    return found


def console(*, stderr: bool = False) -> Console:
    """A console on what is stdout or stderr now."""
    stream = sys.stderr if stderr else sys.stdout
    fits_screen = stream.isatty() or "COLUMNS" in os.environ
    width = None if fits_screen else _PIPE_WIDTH
    found = _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    # On a screen without columns rich prints nothing at all.
    if not found.width:
        found.width = _PIPE_WIDTH
    return found


def show(*items: RenderableType) -> None:
    """Print results for people on stdout; a blank line follows a table."""
    out = console()
    with out.capture() as capture:
        for item in items:
            out.print(item)
            if isinstance(item, Table):
                out.print()
    # Rich fills table rows with spaces, which a diff or an editor would show.
    print(*(line.rstrip() for line in capture.get().splitlines()), sep="\n")


def show_path(label: str, path: object) -> None:
    """Print a path on a line of its own, never folded, so that it can be copied whole."""
    print(f"{label} {printable(str(path))}")


def show_json(content: dict[str, Any], command: str | None = None) -> None:
    """Print one JSON object on stdout; what is not a finite number is null.

    Args:
        content: What the command found; `isobasin/schemas/COMMAND.json` says what is in it.
        command: The command, where it is none of several; by default the one that is being carried out.
    """
    recipe = followed()
    command = command or (recipe and recipe.command)
    print(as_json({"command": command, "schema_version": SCHEMA_VERSION, **content}))


def answer(
    content: Callable[[], dict[str, Any]], report: Iterable[RenderableType], as_json: bool, *, holds: bool = True
) -> None:
    """Say what a verb found out, as JSON or for people; exit code 1 where what was asked doesn't hold."""
    if as_json:
        show_json(content())
    else:
        show(*report)
    if not holds:
        raise typer.Exit(1)


def complain(message: str) -> None:
    """Print an error as one line on stderr, whatever line breaks the message has."""
    _print_line("error:", "bold red", message)


def complain_in_full(trace: str) -> None:
    """Print a traceback on stderr."""
    with suppress(OSError):
        print(*map(printable, trace.splitlines()), sep="\n", file=sys.stderr)


def _print_line(label: str, style: str, message: str) -> None:
    # With stderr closed there is nobody to tell; the exit code still says it.
    with suppress(OSError):
        console(stderr=True).print(Text.assemble((label, style), " ", printable(one_line(message))), soft_wrap=True)


QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether the user asked for errors alone on stderr."""

VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether they asked for tracebacks and for what other libraries say."""


def debugging() -> bool:
    """Whether the user asked, here or in the environment, for tracebacks and for what other libraries say."""
    return VERBOSE.get() or os.environ.get(DEBUG, "") not in ("", "0")


@contextmanager
def working(what: str) -> Generator[Callable[[str, int, int], None]]:
    """Progress on stderr, bars on a terminal and else a line now and then; and silence of the libraries that work.

    Args:
        what: Shown until the library says what it does.

    Yields:
        The library's progress callback.
    """
    with quiet(), redirect_stdout(sys.stderr), _bars(what) as progress:
        told = LISTENER.set(progress)
        try:
            yield progress
        finally:
            LISTENER.reset(told)


@contextmanager
def quiet() -> Generator[None]:
    """No bars, warnings or logs of transformers and huggingface_hub, which read these variables when imported.

    Our own warnings are kept, and printed in the end, each once.
    """
    if debugging():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    said: dict[str, None] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", IsobasinWarning)
            warnings.showwarning = lambda message, *_, **__: said.setdefault(str(message))
            yield
    finally:
        logging.disable(before)
        for message in () if QUIET.get() else said:
            _print_line("warning:", "bold yellow", message)


def bars_on(screen: Console, bar: BarColumn, *more: ProgressColumn) -> Progress:
    """Bars with a word on what is done and one on how far it is (`count`); none where there is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        bar,
        TextColumn("{task.fields[count]}", markup=False),
        *more,
        console=screen,
        transient=True,
        disable=not screen.is_terminal or QUIET.get(),
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def _bars(what: str) -> Generator[Callable[[str, int, int], None]]:
    """One line for each kind of work, removed in the end; where there is no terminal, a line now and then."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        with _lines(what) as lines:
            yield lines
        return
    with bars_on(screen, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bars:
        first = bars.add_task(what, total=None, count="")
        tasks: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            stop_if_asked()
            bars.update(first, visible=False)
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=None, count="")
            # Of a single step nothing can be told before it ends: its bar only pulses.
            known = total > 1 or done == total
            count = f"{done}/{total}" if total > 1 else ""
            bars.update(tasks[step], completed=done, total=total if known else None, count=count)

        yield progress


@contextmanager
def _lines(what: str) -> Generator[Callable[[str, int, int], None]]:
    """Progress for a log: what is being done, and for how long the command has gone on."""
    doing = what

    def progress(step: str, done: int, total: int) -> None:
        nonlocal doing
        stop_if_asked()
        doing = f"{step} {done}/{total}" if total > 1 else step

    with now_and_then(lambda seconds: _print_line("progress:", "", f"{doing} ({seconds:.0f} s)")):
        yield progress


@contextmanager
def now_and_then(say: Callable[[float], None]) -> Generator[None]:
    """Have something said while the block lasts: after ten seconds, and then every half minute; never where quiet.

    A thread does it, since a step of the work may take longer than that.

    Args:
        say: Is told for how many seconds the block has lasted.
    """
    if QUIET.get():
        yield
        return
    begun, ended = time.monotonic(), Event()

    def tell() -> None:
        wait = _FIRST
        while not ended.wait(wait):
            say(time.monotonic() - begun)
            wait = _EVERY

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
