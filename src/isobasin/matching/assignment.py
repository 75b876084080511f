"""The assignment problem, by scipy: as a whole, or where it is large by the few pairs that could be chosen.

An assignment of least cost among some pairs, and prices u of rows and v of columns with `c_ij >= u_i + v_j` for all of
these and equality for the chosen ones, is one of least cost among all pairs if no other is cheaper than its prices
either: every assignment then costs `Σ u + Σ v` or more, which is what this one costs. So pairs that undercut their
prices are added until there are none. That takes a few passes over the costs, where solving the whole takes as many as
there are rows.

Costs may be rough ones. Those of the pairs that could undercut their prices are then made exact, so that what is found
is of least cost by the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# Rows of which all pairs are given to the solver at once: that takes a second or less.
_SMALL = 1024
# The cheapest pairs of every row and column that are looked at first, and how many a row may get in one round.
_CANDIDATES, _MORE = 64, 64
# As many of all pairs at most are looked at, in as many rounds, before all are.
_SHARE, _ROUNDS = 1 / 4, 30
# Costs count in so many steps between the least and the largest, then in as many finer ones: sums of thousands of them
# are exact in float64. The solver outbids by what two costs differ by, a step at least, and where only the finer ones
# tell them apart prices are near their ends by then.
_STEPS = 2**20
# How soft the first prices are, in deviations of the costs, at the first and the last of so many sweeps.
_SOFTNESS, _SWEEPS = (0.1, 0.01), 15
# What tells equal costs apart where some are picked, of their range.
_TIES = 1e-6
# Costs that are looked at at once.
_NUMBERS = 2**17
# Of rough costs as many a row are made exact at most, before all are.
_EXACT = 64


@dataclass(frozen=True)
class Rough:
    """Costs of all pairs of as many rows as columns, and how to have those of some exactly.

    Attributes:
        costs: Of giving each row each column, but for rounding.
        exact: What some pairs truly cost, by their rows and columns.
        blur: By how much a pair of each row may seem dearer than it is, if it truly costs less than this.
    """

    costs: np.ndarray
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray]
    blur: Callable[[np.ndarray], np.ndarray]


def linear_sum_assignment(costs: Any, *, maximize: bool = False) -> tuple[Any, Any]:
    """`scipy.optimize.linear_sum_assignment`, of large square problems by the pairs that matter.

    Args:
        costs: Of giving each row each column, `(rows, columns)`.
        maximize: Look for the largest sum instead.

    Returns:
        The rows that have one in order, and the column of each.
    """
    rows, columns = costs.shape
    if rows == columns and rows > _SMALL:
        found = by_candidates(np.asarray(-costs if maximize else costs, dtype=float))
        if found is not None:
            return np.arange(rows), found
    # Imported with the first problem: many commands have none.
    from scipy import optimize

    return optimize.linear_sum_assignment(costs, maximize)


def large(size: int) -> bool:
    """Whether assignments of so many rows and columns are found by the pairs that matter."""
    return size > _SMALL


def by_candidates(costs: np.ndarray | Rough, *, finer: bool = True) -> np.ndarray | None:
    """The column of each row, from pairs that are cheap in their row or column; None where too many of them are.

    Args:
        costs: Of all pairs.
        finer: Go on from costs in coarse steps to the exact ones.
    """
    rough, costs = (costs, costs.costs) if isinstance(costs, Rough) else (None, costs)
    least, most = float(costs.min()), float(costs.max())
    if not np.isfinite(most - least):
        return None
    if least == most:
        return np.arange(len(costs)) if rough is None else None
    nearest = costs.argmin(-1)
    if rough is None and len(np.unique(nearest)) == len(costs):
        return nearest
    ties = _ties(len(costs), most - least)
    coarse, pairs, known = (most - least) / _STEPS, _candidates(costs, ties), _Known(costs)
    step, u, v = coarse, None, None
    for _ in range(_ROUNDS):
        if np.count_nonzero(pairs) > _SHARE * pairs.size:
            return None
        rows, columns = pairs.nonzero()
        # Of whole numbers all sums are exact: solvers go round in circles where rounding makes ties unequal.
        values = np.rint((known.of(rows, columns) - least) / step)
        if u is None or v is None:
            u, v = _soft_prices(rows, columns, values, len(costs))
        # Prices change what every assignment costs by the same, and near the best ones there is little left to do.
        left = values - u[rows] - v[columns]
        chosen = _sparse(rows, columns, left, len(costs))
        more_u, more_v = _prices(rows, columns, left, chosen)
        u, v = u + more_u, v + more_v
        paid = step * (u - 1) + least, step * v
        if _add(pairs, ties, known.under(*paid)):
            continue
        if rough is not None and _make_exact(pairs, known, rough, *paid):
            if len(known.places) > _EXACT * len(costs):
                return None
        elif step == coarse and finer:
            step, u, v = coarse / _STEPS, _STEPS * u, _STEPS * v
        else:
            return chosen
    return None


class _Known:
    """What pairs cost, exactly where rough costs have been made so."""

    def __init__(self, costs: np.ndarray) -> None:
        """No cost was made exact yet."""
        self.costs = costs
        # Of those that were, in order: row times the number of columns, and column.
        self.places, self._values = np.empty(0, int), np.empty(0)

    def of(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What some pairs cost."""
        found = self.costs[rows, columns].astype(float)
        if len(self.places):
            wanted = rows * len(self.costs) + columns
            at = np.searchsorted(self.places, wanted).clip(max=len(self.places) - 1)
            exact = self.places[at] == wanted
            found[exact] = self._values[at[exact]]
        return found

    def add(self, places: np.ndarray, values: np.ndarray) -> None:
        """Some are exact from now on."""
        places, values = np.concatenate([self.places, places]), np.concatenate([self._values, values])
        order = np.argsort(places, kind="stable")
        self.places, self._values = places[order], values[order]

    def under(
        self, u: np.ndarray, v: np.ndarray, blur: np.ndarray | None = None
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Of some rows at a time, how far pairs are above their prices, and which are below, or less so than a blur.

        Those that were made exact are not asked about: they are infinitely far above.
        """
        size = len(self.costs)
        for some in _slices(size):
            above = self.costs[some] - v - u[some, None]
            first, last = np.searchsorted(self.places, (some.start * size, some.stop * size))
            above.reshape(-1)[self.places[first:last] - some.start * size] = np.inf
            below = above < (0 if blur is None else blur[some, None])
            yield some, above, below


def _slices(size: int) -> list[slice]:
    """Rows, or columns, of a square matrix, as many at a time as are looked at at once."""
    step = max(1, _NUMBERS // size)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _ties(size: int, spread: float) -> np.ndarray:
    """Small numbers for every pair: of those that cost the same, each row looks at others."""
    return np.lib.stride_tricks.sliding_window_view(
        _TIES * spread * np.random.default_rng(0).random(2 * size - 1), size
    )


def _candidates(costs: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """The cheapest pairs of every row, then, less what their rows' dearest of these costs, of every column.

    And those of the diagonal, so that there is an assignment among them.
    """
    size = len(costs)
    pairs = np.eye(size, dtype=bool)
    dearest = np.empty((size, 1))
    for some in _slices(size):
        part = costs[some] + ties[some]
        cheap = np.argpartition(part, _CANDIDATES)[:, :_CANDIDATES]
        np.put_along_axis(pairs[some], cheap, True, -1)
        dearest[some] = np.take_along_axis(part, cheap, -1).max(-1, keepdims=True)
    for some in _slices(size):
        cheap = np.argpartition((costs[:, some] + ties[:, some] - dearest).T, _CANDIDATES)[:, :_CANDIDATES]
        np.put_along_axis(pairs.T[some], cheap, True, -1)
    return pairs


def _soft_prices(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Prices near the best ones: those of assignments by shares, harder and harder ones (Sinkhorn's iteration)."""
    order = np.argsort(columns, kind="stable")
    cost = values.astype(np.float32)
    # Of each side in turn: its own number of every pair, the other side's, and the cost, in the order of its own.
    sides = (rows, columns, cost), (columns[order], rows[order], cost[order])
    firsts = [np.searchsorted(own, np.arange(size)) for own, _, _ in sides]
    prices = [np.zeros(size, np.float32) for _ in sides]
    for softness in values.std() * np.geomspace(*_SOFTNESS, _SWEEPS):
        for i, (own, other, cost) in enumerate(sides):
            gain = (prices[1 - i][other] - cost) / np.float32(softness)
            best = np.maximum.reduceat(gain, firsts[i])
            total = np.add.reduceat(np.exp(gain - best[own]), firsts[i])
            prices[i] = -np.float32(softness) * (best + np.log(total))
    u, v = (np.rint(price.astype(float)) for price in prices)
    return u, v


def _sparse(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """The column of each row in the assignment of least cost among some pairs."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # A pair whose cost is 0 would count as none.
    above = values - values.min() + 1
    return min_weight_full_bipartite_matching(csr_matrix((above, (rows, columns)), shape=(size, size)))[1]


def _prices(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prices of rows and columns that no pair undercuts, and whose sum is the cost of the pairs that are chosen.

    With `w_ij = c_ij - c_i,M(i)`, those of columns are what keeps `v_j - v_M(i) <= w_ij`: there are none but lengths of
    shortest paths, to every column or from it. Their mean has room on both sides, and few other pairs undercut it.
    """
    paid = np.empty(len(chosen))
    own = chosen[rows] == columns
    paid[rows[own]] = values[own]
    taken, more = chosen[rows], values - paid[rows]
    v = np.floor((_lengths(columns, taken, more) - _lengths(taken, columns, more)) / 2)
    return paid - v[chosen], v


def _lengths(to: np.ndarray, from_: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The length of the shortest path to each point, from whichever (Bellman and Ford's method).

    Every point has a step of length 0 to itself, and no circle is shorter than 0. Where no path is shorter than -x, no
    step longer than x is of use, and most are far longer.
    """
    order = np.argsort(to, kind="stable")
    from_, steps, to = from_[order], steps[order], to[order]
    points, useful = np.arange(int(to[-1]) + 1), -steps.min()
    found = np.zeros(len(points))
    while True:
        some = steps <= useful
        first, start, step = np.searchsorted(to[some], points), from_[some], steps[some]
        while True:
            shorter = np.minimum.reduceat(found[start] + step, first)
            if np.array_equal(found, shorter):
                break
            found = shorter
        if -found.min() <= useful:
            return found
        useful = -found.min()


def _add(pairs: np.ndarray, ties: np.ndarray, under: Iterator[tuple[slice, np.ndarray, np.ndarray]]) -> bool:
    """Add pairs that cost less than their prices, of every row those that do by most; whether there were any."""
    found = False
    for some, above, below in under:
        many = below.sum(-1) > _MORE
        found |= bool(below.any())
        if many.any():
            most = np.argpartition(above[many] + ties[some][many], _MORE)[:, :_MORE]
            below[many] = False
            rows = below[many]
            np.put_along_axis(rows, most, True, -1)
            below[many] = rows
        pairs[some] |= below
    return found


def _make_exact(pairs: np.ndarray, known: _Known, rough: Rough, u: np.ndarray, v: np.ndarray) -> bool:
    """Make exact, and add, the pairs that may cost less than their prices, or no more; whether there were any.

    Where there is none all that are chosen are exact, and by the exact costs as well no pair undercuts its prices.
    """
    size, found = len(pairs), []
    for some, _, below in known.under(u, v, rough.blur(u + v.max())):
        pairs[some] |= below
        found.append(np.flatnonzero(below) + some.start * size)
    places = np.concatenate(found)
    if len(places):
        known.add(places, rough.exact(*np.divmod(places, size)))
    return len(places) > 0
