"""How a gauge is learned unless it is said otherwise."""

from __future__ import annotations

from isobasin.refinement.recipe import Refining

LEARNING = Refining(steps=2000, minutes=10, both=False, noise=0.0)
"""There is one end of the line that moves, and nothing is added to what it is looked at by."""
