"""Memory that was let go, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def give_memory_back() -> None:
    """Give back what was let go, between one block of a model and the next; only glibc's `malloc_trim` does that.

    glibc keeps what tensors of up to 32 MiB leave, and small things that are kept of every block lie among it: without
    this a peak grows with a model's depth. Having all tensors apart (`M_MMAP_THRESHOLD`) makes operations on those of a
    few megabytes five times slower.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """The C library's function; None where it has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
