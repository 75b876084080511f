"""Linear assignment of feed-forward units: by scipy of all pairs, by isobasin of those that matter, and by lapx.

    python benchmarks/assignment.py 2048 5632 14336

Units are rows of 768 numbers; near: the same ones permuted, with 30 % noise; independent: drawn apart; of many sizes:
these, each multiplied by exp(x/2), x normal. lapx is tried where it is installed. The matrix of 14,336 units is 1.6 GB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from isobasin.matching import assignment

_ROW, _NOISE = 768, 0.3


def costs(units: int, kind: str) -> np.ndarray:
    """Squared distances of all pairs, less the first model's norms."""
    draw = np.random.default_rng(0)
    a, other = (draw.standard_normal((units, _ROW)) for _ in range(2))
    b = (a + _NOISE * other)[draw.permutation(units)] if kind == "near" else other
    if kind == "of many sizes":
        a, b = (x * np.exp(draw.standard_normal((units, 1)) / 2) for x in (a, b))
    return (b * b).sum(1) - 2 * a @ b.T


def main() -> None:
    """Print seconds of processor time and the ratio to scipy's."""
    solvers: dict[str, Callable[[np.ndarray], Any]] = {
        "scipy": lambda cost: linear_sum_assignment(cost)[1],
        "isobasin": lambda cost: assignment.linear_sum_assignment(cost)[1],
    }
    try:
        lap: Any = import_module("lap")
        solvers["lapx"] = lambda cost: lap.lapjv(cost)[1]
    except ImportError:
        print("lapx isn't installed: scipy alone")
    for units in map(int, sys.argv[1:] or ["1024", "2048"]):
        for kind in ("near", "independent", "of many sizes"):
            cost, first = costs(units, kind), None
            for name, solve in solvers.items():
                began = time.process_time()
                order = solve(cost)
                seconds = time.process_time() - began
                first = first or seconds
                total = cost[np.arange(units), order].sum()
                line = f"{units:6} {kind:13} {name:8} {seconds:8.2f} s {seconds / first:5.2f} cost {total:.12e}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
