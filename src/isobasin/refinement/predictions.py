"""What the ends of a line predict of examples, computed once and then looked up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of predictions that are held at most: of small vocabularies and of classes they fit, of large ones they don't.
LARGEST = 2**29


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities of the ends at all labelled rows of some examples.

    Attributes:
        logs: `(ends, rows, classes)`, in half precision: an 11-bit target is as good to learn from.
        starts: Where the rows of every example begin, and where the last one's end; on the CPU.
        dtype: The type in which they were computed.
    """

    logs: Tensor
    starts: Tensor
    dtype: torch.dtype

    def of(self, examples: Tensor) -> Tensor:
        """Those of some examples, one after the other: `(ends, rows, classes)` in that type."""
        begins = self.starts[examples]
        counts = self.starts[examples + 1] - begins
        before = counts.cumsum(0) - counts
        rows = torch.arange(int(counts.sum())) + (begins - before).repeat_interleave(counts)
        return self.logs[:, rows.to(self.logs.device, non_blocking=True)].to(self.dtype)


def gathered(parts: Iterable[tuple[Sequence[Tensor], Tensor]], count: int) -> Predictions | None:
    """What was predicted of batches of examples; None if all of it would be too large.

    Args:
        parts: Of every batch `(rows, classes)` of every end, and how many rows each of its examples has.
        count: How many examples there are in all.
    """
    logs: list[Tensor] = []
    counts: list[Tensor] = []
    held = seen = 0
    dtype = torch.float32
    for found, rows in parts:
        logs.append(torch.stack([x.half() for x in found]))
        counts.append(rows)
        held, seen, dtype = held + logs[-1].nbytes, seen + len(rows), found[0].dtype
        if held * count > LARGEST * seen:
            return None
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return Predictions(torch.cat(logs, 1), starts, dtype)
