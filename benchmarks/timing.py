"""Best-of-N times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def best_of(rounds: int, work: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[float, T]:
    """Shortest of `rounds` times in seconds, wall times by default, and the last result."""
    least, result = _timed(work, clock)
    for _ in range(1, rounds):
        seconds, result = _timed(work, clock)
        least = min(least, seconds)
    return least, result


def _timed(work: Callable[[], T], clock: Callable[[], float]) -> tuple[float, T]:
    start = clock()
    result = work()
    return clock() - start, result
