"""Orders of rows that conversions mix up, as permutations of a projection's canonical rows.

Canonical rows go head by head, and feature by feature in each. A permutation σ says of every row which one of the
original's it is: `B[r] = A[σ[r]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations

import torch
from torch import Tensor

from isobasin.architectures.projection import Projection


@dataclass(frozen=True)
class Rows:
    """The canonical rows of one projection.

    Attributes:
        role: Its role.
        heads: Number of heads, or of experts.
        features: Rows of each.
    """

    role: str
    heads: int
    features: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.heads * self.features

    @classmethod
    def of(cls, role: str, projection: Projection) -> Rows:
        """Those of a projection, by its layout."""
        return cls(role, *places(projection).shape)


def places(projection: Projection) -> Tensor:
    """Where every canonical row lies along the stored tensor, `(heads, features)`."""
    shape = projection.layout.shape(bias=True)
    return projection.layout.read(torch.arange(torch.Size(shape).numel()).reshape(shape), bias=True)


def reading(projections: Mapping[str, Projection]) -> tuple[list[Rows], Tensor]:
    """Roles that lie behind each other, and in which order a file has their rows, as the model reads it.

    Projections that are stored apart count as one after the other.
    """
    rows = [Rows.of(role, projection) for role, projection in projections.items()]
    if len({projection.weight for projection in projections.values()}) == 1:
        at = torch.cat([places(projection).flatten() for projection in projections.values()])
        return rows, at.argsort()
    return rows, torch.arange(sum(one.count for one in rows))


def fused(rows: Sequence[Rows], own: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every order in which files fuse these roles, in words, with the permutation that reading it as `own` makes."""
    for words, other in named(rows):
        if not torch.equal(own, other):
            yield words, torch.empty_like(own).scatter_(0, own, other)


def named(rows: Sequence[Rows]) -> Iterator[tuple[str, Tensor]]:
    """The orders of a file's rows: in blocks of roles, group by group of heads, or feature by feature."""
    starts = accumulate((one.count for one in rows), initial=0)
    ids = {
        one.role: torch.arange(start, start + one.count).reshape(one.heads, one.features)
        for one, start in zip(rows, starts, strict=False)
    }
    groups = min(one.heads for one in rows)
    grouped = groups > 1 and all(one.heads % groups == 0 for one in rows)
    alike = len({(one.heads, one.features) for one in rows}) == 1
    for order in permutations(ids):
        name = "[" + " | ".join(order) + "]"
        yield f"rows lie as {name}", torch.cat([ids[role].flatten() for role in order])
        if grouped:
            parts = [ids[role].reshape(groups, -1) for role in order]
            yield f"rows lie head by head as {name}", torch.cat(parts, 1).flatten()
        if alike:
            features = torch.stack([ids[role] for role in order], -1)
            yield f"rows lie feature by feature as {name}", features.flatten()
            if groups > 1:
                yield f"rows lie part by part in each feature as {name}", features.permute(1, 2, 0).flatten()


def rotary(features: int, planes: Sequence[tuple[int, int]], heads: int) -> Iterator[tuple[str, str, Tensor]]:
    """Both ways to mix up half and interleaved order of what rotates: in words, the fix, and the permutation."""
    turning = torch.tensor(sorted(i for plane in planes for i in plane))
    n = len(turning)
    pairs = turning.reshape(2, n // 2).T.flatten()  # half order's features, pair by pair
    halves = turning.reshape(n // 2, 2).T.flatten()
    interleaved = planes[0][1] == planes[0][0] + 1 and n > 2
    named = {True: ("half", "interleaved"), False: ("interleaved", "half")}[interleaved]
    for order, wrong in ((pairs, not interleaved), (halves, interleaved)):
        sigma = torch.arange(features)
        sigma[turning] = order
        words = f"in {named[0]} order, not {named[1]}" if wrong else f"put into {named[1]} order once too often"
        split = f"{n // 2}, 2" if order is pairs else f"2, {n // 2}"
        view = f"w.view({heads}, {split}, -1).transpose(1, 2).reshape(w.shape)"
        yield words, view if n == features else f"{view}, of the {n} features that rotate", sigma


def every_head(sigma: Tensor, heads: int) -> Tensor:
    """A permutation of a head's features, for all heads' rows."""
    return (torch.arange(heads)[:, None] * len(sigma) + sigma).flatten()


def inside_out(rows: Rows) -> Iterator[tuple[str, Tensor]]:
    """Rows that go through heads first, and the reverse mistake."""
    if rows.heads > 1 and rows.features > 1:
        ids = torch.arange(rows.count)
        yield "go through heads first, not through features", ids.reshape(rows.heads, -1).T.flatten()
        yield "go through features and then heads once too often", ids.reshape(rows.features, -1).T.flatten()
