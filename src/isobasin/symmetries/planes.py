"""(C*)^p: the maps of a pair's rotated planes of distinct frequencies, one complex number for each."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import Bilinear, Columns, column_squares, evenly
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.loose import Loose


@dataclass(frozen=True)
class Rotating(Bilinear):
    """Maps of some of a pair's planes, as complex columns."""

    @property
    @abstractmethod
    def indices(self) -> tuple[int, ...]:
        """Which planes, in the order of the columns."""

    @cached_property
    def places(self) -> tuple[Columns, Columns]:
        """How to index the real and the imaginary features of the planes."""
        planes = [self.pair.planes[i] for i in self.indices]
        return evenly([a for a, _ in planes]), evenly([b for _, b in planes])

    def columns(self, x: Tensor) -> Tensor:
        """The planes as complex columns `x[:, a] + i x[:, b]`."""
        real, imaginary = self.places
        return torch.complex(x[..., real], x[..., imaginary])

    def with_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """Real and imaginary parts back in their places."""
        real, imaginary = self.places
        moved = x.clone() if 2 * len(self.indices) < self.pair.features else columns.real.new_empty(x.shape)
        moved[..., real], moved[..., imaginary] = columns.real, columns.imag
        return moved


@dataclass(frozen=True)
class Planes(Rotating):
    """(C*)^p, p planes of frequencies of their own: `l <- l u, r <- r / conj(u)`, u of shape `(*batch, heads, p)`."""

    own_axes = 1

    @property
    def indices(self) -> tuple[int, ...]:
        """Those that turn like no other."""
        return self.pair.alone

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """U = 1."""
        return {self.part: torch.ones(*batch, *self.heads, len(self.indices), dtype=torch.complex128, device=device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """`u = exp(r + iφ)` with r uniform on ±½ ln(condition) and φ uniform."""
        half = 0.5 * math.log(condition)
        uniform = torch.rand(2, *batch, *self.heads, len(self.indices), generator=generator, dtype=torch.float64)
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
        return {self.part: (*self.heads, len(self.indices), 2)}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """`exp(r + iφ)`."""
        return torch.exp(torch.view_as_complex(coordinates))

    def slowed(self, coordinates: Tensor, share: float) -> Tensor:
        """Φ as it is, and a share of r."""
        r, phi = coordinates.unbind(-1)
        return torch.stack([share * r, phi], -1)

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Sizes of every u."""
        return {self.name: element[self.part].abs()}

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
        return f"(C*)^{len(self.indices)}"
