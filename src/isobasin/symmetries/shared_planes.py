"""GL(m, C): the maps of planes that turn by the very same angle, one complex matrix for each set of m of them.

A rotation multiplies all m complex columns of a side by one number, so that scores depend on them only through
`L R^H`, the sum of their planes' circuits. Over the reals U is a matrix that commutes with the quarter turn of all m
planes at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import Matrices
from isobasin.symmetries.factor import Parts, eye, haar
from isobasin.symmetries.linear import balance
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.planes import Rotating


@dataclass(frozen=True)
class SharedPlanes(Matrices, Rotating):
    """GL(m, C)^b of b sets of m planes: `L <- L U^T, R <- R conj(U)^{-1}`, U of shape `(*batch, heads, b, m, m)`.

    Attributes:
        size: m.
    """

    size: int = 2

    @property
    def indices(self) -> tuple[int, ...]:
        """Set by set."""
        return tuple(i for block in self.pair.alike if len(block) == self.size for i in block)

    @property
    def blocks(self) -> int:
        """B."""
        return len(self.indices) // self.size

    @property
    def width(self) -> int:
        """A set: one product."""
        return self.size

    @property
    def own_axes(self) -> int:
        """A matrix for each set."""
        return 3

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """U = 1."""
        return {self.part: eye(self.size, (*batch, *self.heads, self.blocks), device).to(torch.complex128)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """`U = P diag(σ) W`: Haar-random unitary P, W and ln σ evenly spread over ±½ ln(condition)."""
        half, shape = 0.5 * math.log(condition), (*batch, *self.heads, self.blocks)
        scales = torch.linspace(-half, half, self.size, dtype=torch.float64).exp()
        p, w = (haar(self.size, shape, generator, torch.complex128) for _ in range(2))
        return {self.part: p * scales @ w}

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """Real and imaginary parts of X in `U = exp(X)`."""
        return {self.part: (*self.heads, self.blocks, self.size, self.size, 2)}

    def chart(self, coordinates: Parts) -> Parts:
        """`exp(X)`."""
        found = coordinates.get(self.part)
        return {} if found is None else {self.part: torch.matrix_exp(torch.view_as_complex(found))}

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Singular values of every U."""
        return {self.name: torch.linalg.svdvals(element[self.part]).flatten(-2)}

    def sets(self, columns: Tensor) -> Tensor:
        """Columns set by set, `(..., rows, b m)` to `(..., b, rows, m)`."""
        return columns.unflatten(-1, (self.blocks, self.size)).movedim(-2, -3)

    def left(self, element: Tensor, columns: Tensor) -> Tensor:
        """`L U^T`."""
        return (self.sets(columns) @ element.mT).movedim(-3, -2).flatten(-2)

    def right(self, element: Tensor, columns: Tensor) -> Tensor:
        """`R conj(U)^{-1}`."""
        moved = torch.linalg.solve(element.conj(), self.sets(columns), left=False)
        return moved.movedim(-3, -2).flatten(-2)

    def balanced(self, left: Tensor, right: Tensor, loose: Loose) -> Tensor:
        """As `linear.balance` has it."""
        return balance(self.sets(left), self.sets(right), loose)

    def __str__(self) -> str:
        return f"GL({self.size}, C)" + (f"^{self.blocks}" if self.blocks > 1 else "")
