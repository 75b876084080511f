"""Signals that end the program: they become exceptions, so that half-written folders are removed on the way out.

An exception that a signal raises can strike inside a library that drops it or makes another of it (torch does, where
it asks Python for a sequence's length). So the signal is also remembered, for all who ask later. Where C calls Python
back, Python prints a traceback of what is dropped: that is left out.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take as long as all else here
    from types import FrameType, TracebackType
    from typing import Any


class Terminated(SystemExit):
    """The process was asked to end; the code is 128 plus the signal's number."""


class _Handler:
    """Raises on the first signal, and remembers it; only Ctrl-C insists when it is repeated.

    Another SIGTERM must not interrupt the clean-up that the first one started.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is None or number == signal.SIGINT:
            self.received = self.received or number
            raise _exception(number)


def catch_signals() -> None:
    """Handle Ctrl-C, SIGTERM and SIGHUP alike; a signal that the caller made us ignore (nohup) stays ignored."""
    handler = _Handler()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, handler)
    _hush()


def leave_quickly() -> None:
    """Collect nothing when the process ends: all memory is given back anyway, and looking through it takes seconds."""
    atexit.register(gc.freeze)


def received() -> int | None:
    """The signal that asked this process to end, if one did."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return next((handler.received for handler in handlers if isinstance(handler, _Handler)), None)


def ending(number: int) -> tuple[str, int]:
    """What to say of the signal that ends this process, and the exit code, which is ours from here on.

    Where Ctrl-C strikes inside text that a library runs by `exec`, CPython takes it for unhandled, whoever catches it
    later, and ends the process by the signal. Running other text takes that back.
    """
    exec("")
    return "interrupted" if number == signal.SIGINT else "terminated", 128 + number


def stop_if_asked() -> None:
    """Raise again what a signal raised and someone dropped."""
    number = received()
    if number is not None:
        raise _exception(number)


def _hush() -> None:
    """Say nothing of a signal's exception that a library drops: whoever asks for the signal tells of it."""
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def ours(kind: type[BaseException]) -> bool:
        return received() is not None and issubclass(kind, (KeyboardInterrupt, Terminated))

    def excepthook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if not ours(kind):
            uncaught(kind, value, traceback)

    def unraisablehook(found: Any) -> None:
        if not ours(found.exc_type):
            unraisable(found)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(128 + number)
