"""(C*)^p: the maps of a pair's rotated planes, one complex number for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import Bilinear, column_squares, plane_part
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.loose import Loose


@dataclass(frozen=True)
class Planes(Bilinear):
    """(C*)^p, p planes of distinct frequencies: `l <- l u, r <- r / conj(u)`, u of shape `(*batch, heads, p)`."""

    @property
    def size(self) -> int:
        """P."""
        return len(self.pair.planes)

    @property
    def width(self) -> int:
        """Every plane by itself."""
        return 1

    @property
    def own_axes(self) -> int:
        """A number for each plane."""
        return 1

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """U = 1."""
        return {self.part: torch.ones(*batch, *self.heads, self.size, dtype=torch.complex128, device=device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """`u = exp(r + iφ)` with r uniform on ±½ ln(condition) and φ uniform."""
        half = 0.5 * math.log(condition)
        uniform = torch.rand(2, *batch, *self.heads, self.size, generator=generator, dtype=torch.float64)
        return {self.part: torch.polar(((2 * uniform[0] - 1) * half).exp(), 2 * math.pi * uniform[1])}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """`u = u_2 u_1`."""
        return {self.part: second[self.part] * first[self.part]}

    def inverse(self, element: Parts) -> Parts:
        """`1 / u`."""
        return {self.part: 1 / element[self.part]}

    def contains(self, element: Parts) -> bool:
        """Whether no u is 0."""
        return bool((element[self.part] != 0).all())

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """R and φ of `u = exp(r + iφ)`."""
        return {self.part: (*self.heads, self.size, 2)}

    def chart(self, coordinates: Parts) -> Parts:
        """`exp(r + iφ)`."""
        found = coordinates.get(self.part)
        return {} if found is None else {self.part: torch.exp(torch.view_as_complex(found))}

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Sizes of every u."""
        return {self.name: element[self.part].abs()}

    def columns(self, x: Tensor) -> Tensor:
        """The planes as complex columns."""
        return plane_part(self.pair, x)

    def with_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """Real and imaginary parts back in their places."""
        _, real, imaginary = self.pair.columns
        moved = x.clone() if self.pair.linear else columns.real.new_empty(x.shape)
        moved[..., real], moved[..., imaginary] = columns.real, columns.imag
        return moved

    def left(self, element: Tensor, columns: Tensor) -> Tensor:
        """`l u`."""
        return columns * element.unsqueeze(-2)

    def right(self, element: Tensor, columns: Tensor) -> Tensor:
        """`r / conj(u)`."""
        return columns / element.conj().unsqueeze(-2)

    def balanced(self, left: Tensor, right: Tensor, loose: Loose) -> Tensor:
        """Columns of equal norms, and of the phases that `Loose.phase` takes."""
        squares = column_squares(left), column_squares(right)
        alive = (squares[0] > 0) & (squares[1] > 0)
        loose.check("rank", ~alive)
        scale = torch.where(alive, squares[1] / squares[0], 1.0).pow(0.25)
        return scale * loose.phase(left * scale.unsqueeze(-2), right / scale.unsqueeze(-2))

    def __str__(self) -> str:
        return f"(C*)^{self.size}"
