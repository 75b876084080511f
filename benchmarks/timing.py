"""Best-of-N times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def best_of(rounds: int, work: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[float, T]:
    """Shortest of `rounds` times in seconds, wall times by default, and the last result."""
    times: list[float] = []
    for _ in range(rounds):
        start = clock()
        result = work()
        times.append(clock() - start)
    return min(times), result
