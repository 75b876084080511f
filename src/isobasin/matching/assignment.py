"""The assignment problem, by scipy: as a whole, or where it is large by the few pairs that could be chosen.

An assignment of least cost among some pairs, and prices u of rows and v of columns with `c_ij >= u_i + v_j` for all of
these and equality for the chosen ones, is one of least cost among all pairs if no other is cheaper than its prices
either: every assignment then costs `Σ u + Σ v` or more, which is what this one costs. So pairs that undercut their
prices are added until there are none. That takes a few passes over the costs, where solving the whole takes as many as
there are rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Rows of which all pairs are given to the solver at once: that takes a second or less.
_SMALL = 1024
# The cheapest pairs of every row and column that are looked at first, and how many a row may get in one round.
_CANDIDATES, _MORE = 64, 64
# As many of all pairs at most are looked at, in as many rounds, before all are.
_SHARE, _ROUNDS = 1 / 4, 30
# Costs count in so many steps between the least and the largest: sums of thousands of them are exact in float64.
_STEPS = 2**40
# How soft the first prices are, in deviations of the costs, at the first and the last of so many sweeps.
_SOFTNESS, _SWEEPS = (0.1, 0.01), 15
# What tells equal costs apart where some are picked, of their range.
_TIES = 1e-6
# Costs that are looked at at once.
_NUMBERS = 2**21


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


def by_candidates(costs: np.ndarray) -> np.ndarray | None:
    """The column of each row, from pairs that are cheap in their row or column; None where too many of them are."""
    least, most = costs.min(), costs.max()
    if not np.isfinite(most - least):
        return None
    if least == most:
        return np.arange(len(costs))
    nearest = costs.argmin(-1)
    if len(np.unique(nearest)) == len(costs):
        return nearest
    ties = _ties(len(costs), most - least)
    step, pairs = (most - least) / _STEPS, _candidates(costs, ties)
    u = v = None
    for _ in range(_ROUNDS):
        if np.count_nonzero(pairs) > _SHARE * pairs.size:
            return None
        rows, columns = pairs.nonzero()
        # Of whole numbers all sums are exact: solvers go round in circles where rounding makes ties unequal.
        values = np.rint((costs[rows, columns] - least) / step)
        if u is None or v is None:
            u, v = _soft_prices(rows, columns, values, len(costs))
        # Prices change what every assignment costs by the same, and near the best ones there is little left to do.
        left = values - u[rows] - v[columns]
        chosen = _sparse(rows, columns, left, len(costs))
        more_u, more_v = _prices(rows, columns, left, chosen)
        u, v = u + more_u, v + more_v
        if not _add(pairs, costs, ties, step * (u - 1) + least, step * v):
            return chosen
    return None


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
    """The length of the shortest path to each point, from whichever (Bellman and Ford's method)."""
    order = np.argsort(to, kind="stable")
    from_, steps, to = from_[order], steps[order], to[order]
    count = int(to[-1]) + 1
    first, found = np.searchsorted(to, np.arange(count)), np.zeros(count)
    while True:
        # Every point has a step of length 0 to itself, and no circle is shorter than 0.
        shorter = np.minimum.reduceat(found[from_] + steps, first)
        if np.array_equal(found, shorter):
            return found
        found = shorter


def _add(pairs: np.ndarray, costs: np.ndarray, ties: np.ndarray, u: np.ndarray, v: np.ndarray) -> bool:
    """Add pairs that cost less than their prices, of every row those that do by most; whether there were any."""
    found = False
    for some in _slices(len(costs)):
        above = costs[some] - v - u[some, None]
        under = above < 0
        many = under.sum(-1) > _MORE
        found |= bool(under.any())
        if many.any():
            most = np.argpartition(above[many] + ties[some][many], _MORE)[:, :_MORE]
            under[many] = False
            rows = under[many]
            np.put_along_axis(rows, most, True, -1)
            under[many] = rows
        pairs[some] |= under
    return found
