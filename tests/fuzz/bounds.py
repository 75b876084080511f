"""A run of the program inside this process, within bounds of time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WALL_SECONDS, CPU_SECONDS, MEMORY_BYTES = 120, 40, 3 * 2**30


class TooLong(BaseException):
    """The time is up; no `except Exception` catches it."""


@dataclass(frozen=True)
class Run:
    """What a run did.

    Attributes:
        code: Its exit code; None if it was stopped, or ended by an exception.
        out: What it printed on stdout.
        err: What it printed on stderr.
        seconds: How long it took, of this process's time.
        grown: By how many bytes the largest size of this process ever has grown.
        raised: The exception that left it, if one did.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    grown: int
    raised: str = ""


def run(arguments: Sequence[str]) -> Run:
    """Run the program with arguments."""
    from typer.main import get_command

    from isobasin.cli.program import app

    out, err, code, raised = io.StringIO(), io.StringIO(), None, ""
    begun, largest = time.process_time(), _largest()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited():
        try:
            get_command(app)(list(arguments), prog_name="isobasin")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except (TooLong, Exception) as error:
            raised = f"{type(error).__name__}: {error}"
    return Run(code, out.getvalue(), err.getvalue(), time.process_time() - begun, _largest() - largest, raised)


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _limited() -> Generator[None]:
    """Alarms of the wall clock and of this process's time, and a limit to how much memory it may still take."""

    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {WALL_SECONDS} s, or {CPU_SECONDS} s of CPU")

    timers = ((signal.ITIMER_REAL, signal.SIGALRM, WALL_SECONDS), (signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, hard))
    for timer, _, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for (_, number, _), handler in zip(timers, before, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def released(fifo: Path | None) -> Generator[list[str]]:
    """Let go of whoever waits for a FIFO after a while, and list it: compiled code that waits hears no alarm."""
    found: list[str] = []
    if fifo is None:
        yield found
        return
    script = f"sleep {WALL_SECONDS // 4}; : > {shlex.quote(str(fifo))}"
    # It ends by itself only if somebody waited at the other end.
    helper = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield found
        if helper.poll() is not None:
            found.append("waited for a FIFO")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(helper.pid, signal.SIGKILL)
        helper.wait()


_listeners: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextlib.contextmanager
def listening(listener: Callable[[str, tuple[Any, ...]], None]) -> Generator[None]:
    """Tell a function of every event that Python's audit hooks hear: files that are opened, programs, connections."""
    if not _installed:
        sys.addaudithook(lambda event, arguments: [each(event, arguments) for each in tuple(_listeners)] and None)
        _installed.append(True)
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


_installed: list[bool] = []


def opened(event: str, arguments: tuple[Any, ...]) -> str:
    """The path of a file that is being opened, for any other event nothing."""
    return os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)) else ""


@contextlib.contextmanager
def opening(watched: Path, number: int, change: Callable[[], object]) -> Generator[None]:
    """Call `change` once, when a weight file below a folder is opened for the n-th time."""
    count = 0

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = opened(event, arguments)
        if path.startswith(str(watched)) and path.endswith(".safetensors"):
            count += 1
            if count == number:
                change()

    with listening(heard):
        yield


# Of what is never done for the sake of an input: connections (the hub is switched off here) and other programs.
_FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "os.system", "os.exec", "subprocess.Popen", "os.posix_spawn")


@contextlib.contextmanager
def trespassing(inputs: Path, outside: Path) -> Generator[list[str]]:
    """What a run does that no input may make it do: reading outside of its folder, running its code, and so on."""
    found: list[str] = []

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            found.append(f"{event} {arguments[0]!r}"[:200])
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(str(inputs)):
            found.append(f"ran {arguments[0].co_filename}")
        elif (path := opened(event, arguments)) and os.path.realpath(path).startswith(f"{outside}{os.sep}"):
            found.append(f"read {path}, which lies outside of its folder")

    with listening(heard):
        yield found
