"""What the points of a line say together: the barrier, its error, and its share of the naive one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobasin.choices import Way
from isobasin.records.file import Key, Measured
from isobasin.records.schema import CurveRecord, PointRecord, RunRecord

# Of the examples, for errors: those of errors are then about 2 %.
_DRAWS = 1000

NAIVE = Way.none.value
"""The method that leaves B as it is."""


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises above the straight line between the losses of the two ends.

    Attributes:
        height: At least 0, the value at both ends.
        t: Where it is reached first; 0 if nothing rises above the line.
    """

    height: float
    t: float


def rise(loss: float, t: float, ends: tuple[float, float]) -> float:
    """How far the loss at a point lies above the straight line between those of the ends."""
    return loss - ((1 - t) * ends[0] + t * ends[1])


def height(losses: Sequence[float], t: Sequence[float]) -> Barrier:
    """The barrier `sup_t [ L(θ(t)) - (1 - t) L(A) - t L(B) ]` on the path `θ(t) = (1 - t) A + t B`.

    The paper (arXiv 2606.17830, section 5) writes `t A + (1 - t) B`: the same supremum, with t counted from the other
    end.

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
        math.inf if math.isnan(loss) else rise(loss, at, (first, last)) for loss, at in zip(losses, t, strict=True)
    ]
    worst = max(range(len(rises)), key=rises.__getitem__)
    return Barrier(rises[worst], t[worst])


def curve(run: RunRecord, points: Sequence[PointRecord], naive: CurveRecord | None = None) -> CurveRecord:
    """What the points of one line say.

    Args:
        run: The run they belong to.
        points: One for every t of the run, in its order.
        naive: The curve of method "none" of the same pair; without it `relative` is None, unless this is that curve.

    Raises:
        ValueError: Points are missing, or aren't of one line.
    """
    if tuple(point.t for point in points) != run.t or len({(point.pair, point.method) for point in points}) != 1:
        raise ValueError(f"a curve needs the {len(run.t)} points of one line, by rising t")
    barrier, worst_t = _supremum([point.loss for point in points], run.t)
    calibrated = [point.calibrated_loss for point in points]
    absent = all(loss is None for loss in calibrated)
    calibrated_barrier, calibrated_worst_t = (None, None) if absent else _supremum(calibrated, run.t)
    pair, method = points[0].pair, points[0].method
    whole = barrier if method == NAIVE else None if naive is None else naive.barrier
    forward = sum(point.seconds for point in points)
    found = errors(run.t, run.group_weights, [point.group_losses for point in points])
    return CurveRecord(
        pair=pair,
        method=method,
        barrier=barrier,
        worst_t=worst_t,
        barrier_error=None if barrier is None else found.barrier,
        loss_errors=found.losses,
        relative=_share(barrier, whole),
        share_of_ends=_share(barrier, _mean_of_ends(points)),
        calibrated_barrier=calibrated_barrier,
        calibrated_worst_t=calibrated_worst_t,
        overhead=sum(point.interpolation_seconds for point in points) / forward if forward > 0 else 0.0,
    )


def finished_curves(measured: Measured) -> dict[Key, CurveRecord]:
    """The curve of every line that has all its points, computed from them; the naive ones come first."""
    found: dict[Key, CurveRecord] = {}
    lines = [key for key, points in measured.points.items() if len(points) == len(measured.run.t)]
    for key in sorted(lines, key=lambda key: key[1] != NAIVE):
        found[key] = curve(measured.run, measured.points[key], found.get((key[0], NAIVE)))
    return found


def chosen_rank(rows: Sequence[Mapping[str, Any]]) -> int:
    """1 + how many of some moves have a lower "barrier" than the "chosen" one; None is infinite."""
    barriers = [math.inf if row["barrier"] is None else row["barrier"] for row in rows]
    chosen = next(barrier for row, barrier in zip(rows, barriers, strict=True) if row["chosen"])
    return 1 + sum(barrier < chosen for barrier in barriers)


def _supremum(losses: Sequence[float | None], t: Sequence[float]) -> tuple[float | None, float]:
    """The barrier and where it is; None, and the first such point, if a loss isn't a number."""
    values = [math.inf if loss is None else loss for loss in losses]
    if math.inf in values:
        return None, t[values.index(math.inf)]
    found = height(values, t)
    return found.height, found.t


@dataclass(frozen=True)
class Errors:
    """Standard errors of a line; None where a loss isn't a number, or where there are fewer than two examples.

    Attributes:
        barrier: Of its barrier.
        losses: Of the loss at every point.
    """

    barrier: float | None
    losses: tuple[float | None, ...]


def errors(t: Sequence[float], weights: Sequence[float], losses: Sequence[Sequence[float | None]]) -> Errors:
    """What the losses and the barrier of a line scatter by when examples are drawn anew.

    All points see the same draws, so that what is noise of all of them cancels in the barrier. The factor n / (n - 1)
    of the variance makes up for the means' being those of the same examples.

    Args:
        t: The points.
        weights: How much every example counts, or every group of them; those of weight 0 are left out.
        losses: Of every point, that of every example; None where it isn't a number.
    """
    counted = np.asarray(weights) > 0
    shares = np.asarray(weights)[counted]
    values = np.array([[math.nan if x is None else x for x in row] for row in losses])[:, counted]
    count = len(shares)
    if count < 2:
        return Errors(None, (None,) * len(t))
    shares = _drawn(count) * shares
    with np.errstate(invalid="ignore"):
        means = shares @ values.T / shares.sum(1, keepdims=True)
        at = np.asarray(t)
        heights = (means - ((1 - at) * means[:, :1] + at * means[:, -1:])).max(1)
        found = np.array([heights.std(), *means.std(0)]) * math.sqrt(count / (count - 1))
    # As many digits as mean something: what is computed again elsewhere is the same.
    known = [float(f"{error:.4g}") if math.isfinite(error) else None for error in found]
    return Errors(known[0], tuple(known[1:]))


@lru_cache(maxsize=1)
def _drawn(count: int) -> NDArray[np.float64]:
    """How often each of some examples is drawn, `(draws, count)`: as many as there are each time, with replacement."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_DRAWS).astype(np.float64)


def _mean_of_ends(points: Sequence[PointRecord]) -> float | None:
    first, last = points[0].loss, points[-1].loss
    return None if first is None or last is None else (first + last) / 2


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None or whole <= 0 else part / whole
