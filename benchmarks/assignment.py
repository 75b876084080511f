"""Linear assignment of feed-forward units: scipy's solver, which isobasin uses, against lapx's where that is installed.

    python benchmarks/assignment.py 2048 5632 14336

Units are rows of 768 numbers; near: the same ones permuted, with 30 % noise; independent: drawn apart. The matrix of
14,336 units is 1.6 GB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

_ROW, _NOISE = 768, 0.3


def costs(units: int, *, near: bool) -> np.ndarray:
    """Squared distances of all pairs, less the first model's norms."""
    draw = np.random.default_rng(0)
    a, other = (draw.standard_normal((units, _ROW)) for _ in range(2))
    b = (a + _NOISE * other)[draw.permutation(units)] if near else other
    return (b * b).sum(1) - 2 * a @ b.T


def main() -> None:
    """Print seconds of processor time and the ratio to scipy's."""
    solvers: dict[str, Callable[[np.ndarray], Any]] = {"scipy": lambda cost: linear_sum_assignment(cost)[1]}
    try:
        lap: Any = import_module("lap")
        solvers["lapx"] = lambda cost: lap.lapjv(cost)[1]
    except ImportError:
        print("lapx isn't installed: scipy alone")
    for units in map(int, sys.argv[1:] or ["1024", "2048"]):
        for near in (True, False):
            cost, first = costs(units, near=near), None
            for name, solve in solvers.items():
                began = time.process_time()
                order = solve(cost)
                seconds = time.process_time() - began
                first = first or seconds
                total = cost[np.arange(units), order].sum()
                kind = "near" if near else "independent"
                print(
                    f"{units:6} {kind:12} {name:6} {seconds:8.2f} s {seconds / first:5.2f} cost {total:.6e}", flush=True
                )


if __name__ == "__main__":
    main()
