"""GL(n): the maps of a pair's columns that don't rotate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isobasin.symmetries.bilinear import Matrices, linear_part


@dataclass(frozen=True)
class Linear(Matrices):
    """GL(n), n features that don't rotate: `L <- L U^T, R <- R U^{-1}`, U of shape `(*batch, heads, n, n)`."""

    def columns(self, x: Tensor) -> Tensor:
        """The unrotated columns."""
        return linear_part(self.pair, x)

    def with_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """The unrotated columns back in their places."""
        if not self.pair.planes:
            return columns
        moved = x.clone()
        moved[..., self.pair.columns[0]] = columns
        return moved

    def __str__(self) -> str:
        return f"GL({self.width})"
