"""The loss barrier between two models (arXiv 2606.17830, section 5)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises above the straight line between the losses of the two ends.

    Attributes:
        height: At least 0, the value at both ends.
        t: Where it is reached first; 0 if nothing rises above the line.
    """

    height: float
    t: float


def barrier(losses: Sequence[float], t: Sequence[float]) -> Barrier:
    """The barrier `sup_t [ L(θ(t)) - (1 - t) L(A) - t L(B) ]` on the path `θ(t) = (1 - t) A + t B`.

    The paper writes `t A + (1 - t) B`: the same supremum, with t counted from the other end.

    Args:
        losses: `L(θ(t))` at every point, both ends included. A loss that is not a number counts as infinite.
        t: The points, rising from 0 to 1.

    Raises:
        ValueError: The points aren't those, or the loss of an end is not finite.
    """
    if len(losses) != len(t):
        raise ValueError(f"{len(losses)} losses at {len(t)} points: give one loss for every point")
    if len(t) < 2 or t[0] != 0 or t[-1] != 1 or any(not a < b for a, b in itertools.pairwise(t)):
        raise ValueError("the points t must rise from 0 to 1")
    first, last = losses[0], losses[-1]
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(f"the losses of the ends are {first} and {last}: a barrier needs both finite")
    rises = [
        math.inf if math.isnan(loss) else loss - ((1 - at) * first + at * last)
        for loss, at in zip(losses, t, strict=True)
    ]
    worst = max(range(len(rises)), key=rises.__getitem__)
    return Barrier(rises[worst], t[worst])
