"""Numbers that a user gives, checked in one way; from Python as from the command line."""

from __future__ import annotations

import os
import sys

from isobasin.errors import IsobasinError

_MOST = sys.float_info.max
# Digits of a wrong number that are repeated.
_SHOWN = 30

SEEDS = 2**63 - 1
"""The greatest seed: torch would take twice that, but further ones are made by counting on."""

MANY = 1_000_000
"""More steps than anyone has use for."""

LARGEST_BATCH = 2**16
"""More examples than a model is ever given at once."""

THREADS = 1024
"""More threads or processes than this end a process rather than speed it up."""

ABOVE_ROUNDING = 1e15
"""A map of a greater condition number has no inverse in float64."""

VANISHING = sys.float_info.min**0.25
"""A squared norm below this is zero: quotients of two such, and of their roots, would leave float64."""

UNHEARD = 64.0
"""The largest scale that matching gives to what no function depends on, in a model in which something might."""


def check_number(name: str, value: float, least: float = -_MOST, most: float = _MOST) -> None:
    """Refuse a number outside of a range, and what is infinite or no number, which lies outside every range.

    Args:
        name: What the user calls it, such as "points".
        value: What they gave.
        least: The range's lower end, which is included.
        most: Its upper end, likewise; by default all finite numbers are inside.

    Raises:
        IsobasinError: Naming all of them.
    """
    try:
        inside = least <= value <= most
    except TypeError:  # no number
        inside = False
    if inside:
        return
    if least == -_MOST:
        allowed = "a finite number"
    else:
        allowed = f"at least {_plain(least)}" if most >= _MOST else f"a number from {_plain(least)} to {_plain(most)}"
    given = repr(value) if isinstance(value, str) else str(value)
    raise IsobasinError(f"{name} is {given if len(given) <= _SHOWN else f'{given[:_SHOWN]}…'}: give {allowed}")


def check_several(name: str, given: object) -> None:
    """Refuse one path where several are asked for: its characters would be taken for them.

    Raises:
        IsobasinError: Naming it.
    """
    if isinstance(given, (str, os.PathLike)):
        raise IsobasinError(f"{name} is {os.fspath(given)!r}: give a list of them")


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def check_seed(seed: int) -> None:
    """Refuse a seed that isn't one.

    Raises:
        IsobasinError: Naming it.
    """
    check_number("seed", seed, 0, SEEDS)
