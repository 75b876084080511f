"""The two sides of each bilinear pair, in the form that matching compares.

Which bias rows take part follows from the group: a bias that is free, or that trades with another, is no
invariant and stays out (`bilinear.Roles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import column_squares
from isobasin.symmetries.groups import QUERY_KEY, AttentionGroup
from isobasin.symmetries.weights import AttentionWeights


@dataclass(frozen=True)
class Sides:
    """Sides `(L, R)` of one factor for every key/value head: every `width` columns make a circuit `L R^H`.

    A side that query heads share has one slot, the other one slot per query head.

    Attributes:
        left: `(..., g, slots, rows, columns)`, complex where they rotate.
        right: Likewise, with its own slots and rows.
        width: How many columns one circuit has; all of those that don't rotate.
    """

    left: Tensor
    right: Tensor
    width: int

    def tall(self) -> Sides:
        """Slots stacked into rows: `(..., g, 1, slots * rows, ·)`, as one map serves all of a group's queries."""
        left, right = (x.flatten(-3, -2).unsqueeze(-3) for x in (self.left, self.right))
        return Sides(left, right, self.width)

    def blocks(self) -> tuple[Tensor, Tensor]:
        """Both sides circuit by circuit, `(..., g, slots, circuits, rows, width)`."""
        left, right = (x.unflatten(-1, (-1, self.width)).movedim(-2, -3) for x in (self.left, self.right))
        return left, right

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """`L^H L` and `R^H R` circuit by circuit, `(..., g, slots, circuits, width, width)`."""
        if self.width == 1:
            left, right = (column_squares(x)[..., None, None] for x in (self.left, self.right))
        else:
            left, right = (x.mH @ x for x in self.blocks())
        return left, right

    def sizes(self) -> tuple[Tensor, Tensor]:
        """`||L||` and `||R||` of every circuit, `(..., g, slots, circuits)`."""
        if self.width == 1:
            left, right = (column_squares(x).sqrt() for x in (self.left, self.right))
        else:
            left, right = (torch.linalg.vector_norm(x, dim=(-2, -1)) for x in self.blocks())
        return left, right

    def column_squares(self) -> Tensor:
        """`||l_j||² ||r_j||²` of every column, `(..., g, slots, columns)`."""
        left, right = (x.diagonal(dim1=-2, dim2=-1).real.flatten(-2) for x in self.grams)
        return left * right

    def squares(self) -> Tensor:
        """Squared norm of every head's circuits, `(..., g, slots)`; one side's single slot broadcasts."""
        left, right = self.grams
        return (left * right.conj()).real.sum((-3, -2, -1))

    def minus(self, other: Sides) -> Sides:
        """Sides of the difference of two circuits, `ΔL R^H + L' ΔR^H`, in which nothing large cancels."""

        def beside(x: Tensor, y: Tensor) -> Tensor:
            parts = (t.unflatten(-1, (-1, self.width)) for t in (x, y))
            return torch.cat(list(parts), -1).flatten(-2)

        left = beside(self.left - other.left, other.left)
        return Sides(left, beside(self.right, self.right - other.right), 2 * self.width)


def pair_sides(group: AttentionGroup, weights: AttentionWeights, pair: str) -> list[Sides]:
    """The sides of a pair's factors, of those that all heads share as each head has them.

    Where queries and keys are normalised, columns have the signs that make gains positive (`AttentionGroup.unsigned`).
    """
    parts = group.unsigned(weights.tensors()) if pair == QUERY_KEY else weights.tensors()
    found: list[Sides] = []
    for factor in group.pairs[pair]:
        left, right = factor.sides(parts)
        if not factor.heads:
            left = left.unflatten(-3, (group.kv_heads, group.queries_per_kv))
            right = right.unsqueeze(-4).expand(*left.shape[:-3], *right.shape[-3:])
        found.append(Sides(left, right, factor.width))
    return found


def all_sides(group: AttentionGroup, weights: AttentionWeights) -> dict[str, list[Sides]]:
    """`pair_sides` of every pair, by its name."""
    return {pair: pair_sides(group, weights, pair) for pair in group.pairs}
