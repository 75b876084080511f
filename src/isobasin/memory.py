"""Where tensors are: carried to a device, and the memory of those that were let go given back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Bytes that are read between one time and the next: it takes a few milliseconds, and what was given back has to be
# asked for again.
_BETWEEN = 16 * 2**20
_read = 0


def carried(x: Tensor, device: torch.device | str, dtype: torch.dtype, *, own: bool = False) -> Tensor:
    """A tensor on a device in a type that is at least as wide: widened there, so that fewer bytes are carried over.

    It may be the same tensor, unless one is asked for that is the caller's own.
    """
    found = x.to(device).to(dtype)
    return found.clone() if own and found is x else found


def give_memory_back(count: int = _BETWEEN) -> None:
    """Give back what was let go, if enough was read since the last time; only glibc's `malloc_trim` does that.

    glibc keeps what tensors of up to 32 MiB leave, and small things that are kept of every block lie among it: without
    this a peak grows with a model's depth. Having all tensors apart (`M_MMAP_THRESHOLD`) makes operations on those of a
    few megabytes five times slower.

    Args:
        count: Bytes that are about to be read: whatever goes through a model reads it block by block.
    """
    global _read
    _read += count
    trim = _trim() if _read >= _BETWEEN else None
    if trim is not None:
        trim(0)
        _read = 0


@cache
def _trim() -> Any:
    """The C library's function; None where it has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
