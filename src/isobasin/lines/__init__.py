"""Linear mode connectivity: the straight line between two models, the losses along it, and its barrier.

`barrier(path, loss_fn)` takes any loss; `isobasin.barrier` measures checkpoints on data, with all methods.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isobasin.lines.path import (
        POINTS as POINTS,
        LinearPath as LinearPath,
        LossCurve as LossCurve,
        barrier as barrier,
        points as points,
    )

__all__ = ["POINTS", "LinearPath", "LossCurve", "barrier", "points"]


def __getattr__(name: str) -> object:
    # Loaded on first use, as in the package itself.
    if name not in __all__:
        raise AttributeError(f"module 'isobasin.lines' has no attribute {name!r}")
    return getattr(import_module("isobasin.lines.path"), name)
