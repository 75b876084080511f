"""Linear mode connectivity: the straight line between two models, the losses along it, and its barrier.

`barrier(path, loss_fn)` takes any loss; `measure` does it for checkpoints and data, with all methods, and records it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isobasin.lines.measure import measure as measure
    from isobasin.lines.path import (
        POINTS as POINTS,
        LinearPath as LinearPath,
        LossCurve as LossCurve,
        barrier as barrier,
        points as points,
    )

_HOMES = {"measure": "measure"} | dict.fromkeys(("POINTS", "LinearPath", "LossCurve", "barrier", "points"), "path")

__all__ = ["POINTS", "LinearPath", "LossCurve", "barrier", "measure", "points"]


def __getattr__(name: str) -> object:
    # Loaded on first use, as in the package itself.
    if name not in _HOMES:
        raise AttributeError(f"module 'isobasin.lines' has no attribute {name!r}")
    return getattr(import_module(f"isobasin.lines.{_HOMES[name]}"), name)
