"""GL(m, C): the maps of planes that turn by the very same angle, one complex matrix for each set of m of them.

A rotation multiplies all m complex columns of a side by one number, so that scores depend on them only through
`L R^H`, the sum of their planes' circuits. Over the reals U is a matrix that commutes with the quarter turn of all m
planes at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import Matrices
from isobasin.symmetries.planes import Rotating


@dataclass(frozen=True)
class SharedPlanes(Matrices, Rotating):
    """GL(m, C)^b of b sets of m planes: `L <- L U^T, R <- R conj(U)^{-1}`, U of shape `(*batch, heads, b, m, m)`."""

    dtype = torch.complex128
    own_axes = 3

    @property
    def indices(self) -> tuple[int, ...]:
        """Set by set."""
        return tuple(i for block in self.pair.alike if len(block) == self.width for i in block)

    @property
    def several(self) -> tuple[int, ...]:
        """B."""
        return (len(self.indices) // self.width,)

    def sets(self, columns: Tensor) -> Tensor:
        """Columns set by set, `(..., rows, b m)` to `(..., b, rows, m)`."""
        return columns.unflatten(-1, (*self.several, self.width)).movedim(-2, -3)

    def unset(self, sets: Tensor) -> Tensor:
        """The inverse of `sets`."""
        return sets.movedim(-3, -2).flatten(-2)

    def __str__(self) -> str:
        (blocks,) = self.several
        return f"GL({self.width}, C)" + (f"^{blocks}" if blocks > 1 else "")
