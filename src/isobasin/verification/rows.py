"""Rows of tables one by one, where 16 bits are stored: there rounding everywhere may hide one row in a blend of many.

A map of the residual stream is linear, and what is added to all rows of one table is taken from another. So all rows of
the tables that are added up, of tokens and of positions, go through one linear map and one constant for each table; a
row that doesn't is another row. Where the stream is as it was, rows are compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Rows that a map is found from, for every number of their width; and of how many random sums of features.
_SAMPLE, _SUMS = 4, 16
# Rows of which a copy is held.
_AT_ONCE = 1024

Pair = tuple[Tensor, Tensor]
"""One table of two models, `(rows, width)`."""


def unlike_rows(pairs: Sequence[Pair], slack: float) -> list[list[int]]:
    """The numbers of those rows that no map of all tables explains, for each table.

    Where most rows differ, and there are too few to find a map from, none are named.

    Args:
        pairs: Tables of equal width whose rows are added up.
        slack: How far a row may be off, relative to its size.
    """
    if any(x.shape != y.shape for x, y in pairs):
        return [[] for _ in pairs]
    off = [_off(_sizes(y, x), _sizes(y), slack) for x, y in pairs]
    moved = 2 * sum(int(found.sum()) for found in off) > sum(map(len, off))
    if moved:
        off = _off_the_map(pairs, slack)
    return [found.nonzero().flatten().tolist() for found in off]


def _off(gaps: Tensor, sizes: Tensor, slack: float) -> Tensor:
    """Which rows' gaps are more than that of their size, or of a usual row's if that is larger."""
    return gaps > slack * sizes.clamp(min=float(sizes.median()))


def _sizes(y: Tensor, x: Tensor | None = None) -> Tensor:
    """The norm of every row, or of its difference from another table's, in float64; some at a time."""
    found = y.new_empty(len(y), dtype=torch.float64)
    for start in range(0, len(y), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        rows = y[part].double() if x is None else y[part].double() - x[part].double()
        found[part] = rows.norm(dim=-1)
    return found


def _off_the_map(pairs: Sequence[Pair], slack: float) -> list[Tensor]:
    """Which rows one linear map and a constant for each table don't explain: none where that can't be found out.

    The map is found from some rows, and compared in random sums of features only, so that large tables take no long.
    """
    width, generator = pairs[0][0].shape[-1], torch.Generator().manual_seed(0)
    device = pairs[0][0].device
    sums = (torch.randn(width, _SUMS, generator=generator, dtype=torch.float64) / _SUMS**0.5).to(device)
    constants = torch.eye(len(pairs), dtype=torch.float64, device=device)
    inputs = [torch.cat([x.double(), c.expand(len(x), -1)], 1) for (x, _), c in zip(pairs, constants, strict=True)]
    wanted = [y.double() @ sums for _, y in pairs]
    stacked, count = torch.cat(inputs), _SAMPLE * (width + len(pairs))
    if len(stacked) < count:
        return [torch.zeros(len(x), dtype=torch.bool) for x in inputs]
    # Small tables whole: their constants, and directions of their own, are known from nothing else.
    small = torch.cat([torch.full((len(x),), len(x) <= width, device=device) for x in inputs])
    drawn = torch.zeros(len(stacked), dtype=torch.bool)
    drawn[torch.randperm(len(stacked), generator=generator)[:count]] = True
    sample = drawn.to(device) | small
    found = torch.linalg.lstsq(stacked[sample], torch.cat(wanted)[sample]).solution
    return [_off((z - x @ found).norm(dim=-1), z.norm(dim=-1), slack) for x, z in zip(inputs, wanted, strict=True)]
