"""How a gauge is learned unless it is said otherwise."""

from __future__ import annotations

from isobasin.refinement.recipe import Refining

LEARNING = Refining(steps=2000, minutes=10, both=False, noise=0.0, patience=20)
"""There is one end of the line that moves, and nothing is added to what it is looked at by."""
_FEW, _SHARE = 100, 0.3


def stretching(how: Refining) -> float:
    """The rate of all that is no rotation beside that of rotations.

    In few steps each coordinate goes as far, whatever it matters, and what stretches or shifts has thousands, of
    which a few examples say little: the whole group was worse than rotations alone (docs/gauge.md).
    """
    return _SHARE if how.steps < _FEW else 1.0
