"""How the program starts: signals first, because importing all the rest takes a while."""

from __future__ import annotations

import os
import sys

from isobasin.signals import Terminated, catch_signals, ending, leave_quickly, received

# From this size on memory is asked of the system by itself, and given back as soon as it is let go: a large page.
_LARGE = 2**21
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_memory_back() -> None:
    """Let no small thing that is kept hold on to the memory of tensors around it, which are made and let go again.

    glibc raises that size to those that it saw let go, up to 32 MiB, and peaks then grow with a model's depth. Where it
    isn't glibc, or `MALLOC_MMAP_THRESHOLD_` says what the user wants, nothing is changed.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    import ctypes

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)


def run() -> None:
    """The entry point of `isobasin` and `python -m isobasin`."""
    catch_signals()
    leave_quickly()
    give_memory_back()
    try:
        from isobasin.cli.program import start

        start()
    except BaseException as error:
        number = received()
        if number is None or (isinstance(error, SystemExit) and not isinstance(error, Terminated)):
            raise
        # A signal while things were imported, whatever became of it there; all later ones the program answers itself.
        word, code = ending(number)
        print(f"error: {word}", file=sys.stderr)
        sys.exit(code)


def __getattr__(name: str) -> object:
    """`app`, for who runs commands in a process of their own; imported when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from isobasin.cli.program import app

    return app
