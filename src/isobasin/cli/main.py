"""How the program starts: signals first, because importing all the rest takes a while."""

from __future__ import annotations

import sys

from isobasin.signals import Terminated, catch_signals, ending, leave_quickly, received


def run() -> None:
    """The entry point of `isobasin` and `python -m isobasin`."""
    catch_signals()
    leave_quickly()
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
