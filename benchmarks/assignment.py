"""Linear assignment of feed-forward units: by scipy of all pairs, by isobasin of those that matter, and by lapx.

    python benchmarks/assignment.py 2048 5632 14336
    python benchmarks/assignment.py --gated 8192

Units are rows of 768 numbers; near: the same ones permuted, with 30 % noise; independent: drawn apart; of many sizes:
these, each multiplied by exp(x/2), x normal. lapx is tried where it is installed. The matrix of 14,336 units is 1.6 GB.
With `--gated` it is blocks of gated units of width 2 048, with signed scales: matched by the costs of all pairs in
float64, and by those in float32 and the exact ones that matter, in turn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from isobasin.matching import assignment, units as matching
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale

_ROW, _NOISE = 768, 0.3
_WIDTH, _ROUNDS = 2048, 2


def costs(units: int, kind: str) -> np.ndarray:
    """Squared distances of all pairs, less the first model's norms."""
    draw = np.random.default_rng(0)
    a, other = (draw.standard_normal((units, _ROW)) for _ in range(2))
    b = (a + _NOISE * other)[draw.permutation(units)] if kind == "near" else other
    if kind == "of many sizes":
        a, b = (x * np.exp(draw.standard_normal((units, 1)) / 2) for x in (a, b))
    return (b * b).sum(1) - 2 * a @ b.T


def gated(units: int, kind: str) -> tuple[FeedForwardGroup, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two blocks of gated units drawn apart."""
    draw = torch.Generator().manual_seed(0)
    names = "up", "gate", "down"
    sides = [{name: torch.randn(units, _WIDTH, generator=draw).double() for name in names} for _ in range(2)]
    for side in sides if kind == "of many sizes" else ():
        sizes = (torch.randn(units, 1, generator=draw).double() / 2).exp()
        for rows in side.values():
            rows.mul_(sizes)
    return FeedForwardGroup(units, Scale.signed, Scale.none), sides[0], sides[1]


def blocks(sizes: Sequence[int]) -> None:
    """Print seconds of processor time of matching gated blocks, and how far the sums are apart."""
    torch.set_num_threads(1)
    for units in sizes:
        for kind in ("independent", "of many sizes"):
            problem, rows = gated(units, kind), np.arange(units)
            for _ in range(_ROUNDS):
                began = time.process_time()
                costs = matching.unit_costs(*problem)
                best = assignment.linear_sum_assignment(costs)[1]
                then = time.process_time()
                found = matching.partners(*problem)[0].numpy()
                now = time.process_time()
                for name, seconds, order in ("float64", then - began, best), ("float32", now - then, found):
                    total = costs[rows, order].sum()
                    print(f"{units:6} {kind:13} {name:8} {seconds:8.2f} s cost {total:.12e}", flush=True)


def main() -> None:
    """Print seconds of processor time and the ratio to scipy's."""
    if "--gated" in sys.argv:
        return blocks([int(x) for x in sys.argv[1:] if x != "--gated"] or [2048])
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
