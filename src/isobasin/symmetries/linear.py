"""GL(n): the maps of a pair's columns that don't rotate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import Matrices, linear_part
from isobasin.symmetries.factor import Parts, eye, haar
from isobasin.symmetries.loose import Loose


@dataclass(frozen=True)
class Linear(Matrices):
    """GL(n), n features that don't rotate: `L <- L U^T, R <- R U^{-1}`, U of shape `(*batch, heads, n, n)`."""

    @property
    def size(self) -> int:
        """N."""
        return len(self.pair.linear)

    @property
    def width(self) -> int:
        """All: one product."""
        return self.size

    @property
    def own_axes(self) -> int:
        """A matrix."""
        return 2

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """U = 1."""
        return {self.part: eye(self.size, (*batch, *self.heads), device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """`U = P diag(σ) W`: Haar-random orthogonal P, W and ln σ evenly spread over ±½ ln(condition)."""
        half, batch = 0.5 * math.log(condition), (*batch, *self.heads)
        scales = torch.linspace(-half, half, self.size, dtype=torch.float64).exp()
        return {self.part: haar(self.size, batch, generator) * scales @ haar(self.size, batch, generator)}

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """X of `U = exp(X)`."""
        return {self.part: (*self.heads, self.size, self.size)}

    def chart(self, coordinates: Parts) -> Parts:
        """`exp(X)`."""
        return {self.part: torch.matrix_exp(coordinates[self.part])} if self.part in coordinates else {}

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Singular values of every U."""
        return {self.name: torch.linalg.svdvals(element[self.part])}

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

    def left(self, element: Tensor, columns: Tensor) -> Tensor:
        """`L U^T`."""
        return columns @ element.mT

    def right(self, element: Tensor, columns: Tensor) -> Tensor:
        """`R U^{-1}`."""
        return torch.linalg.solve(element, columns, left=False)

    def balanced(self, left: Tensor, right: Tensor, loose: Loose) -> Tensor:
        """As `balance` has it."""
        return balance(left, right, loose)

    def __str__(self) -> str:
        return f"GL({self.size})"


def balance(left: Tensor, right: Tensor, loose: Loose) -> Tensor:
    """U, `(..., n, n)` real or complex, of the balanced gauge: `L = S Σ^{1/2}`, `R = T Σ^{1/2}` of `L R^H = S Σ T^H`.

    With triangular factors `R_L R_R^H = S Σ T^H` of both sides, `U^T = R_R^H T Σ^{-1/2}`, columns with the signs, or
    phases, that `Loose.phase` takes.
    """
    r_left, r_right = (torch.linalg.qr(square(x), mode="r").R for x in (left, right))
    s, sigma, th = torch.linalg.svd(r_left @ r_right.mH)
    level = sigma.shape[-1] * torch.finfo(sigma.dtype).eps * r_left.norm(dim=(-2, -1)) * r_right.norm(dim=(-2, -1))
    dead = sigma <= level.unsqueeze(-1)
    loose.check("rank", dead | (sigma <= loose.eps * sigma[..., :1]))
    loose.check("singular values", -sigma.diff(dim=-1) <= loose.eps * sigma[..., :1])
    root = torch.where(dead, 0.0, sigma.rsqrt()).unsqueeze(-2)
    to_left, to_right = r_right.mH @ th.mH * root, r_left.mH @ s * root
    for head in dead.any(-1).nonzero().tolist():
        rank = int((~dead[tuple(head)]).sum())
        to_left[tuple(head)] = _completed(to_left[tuple(head)][:, :rank], to_right[tuple(head)][:, :rank])
    columns = left @ to_left, torch.linalg.solve(to_left.mH, right, left=False)
    return (to_left * loose.phase(*columns).unsqueeze(-2)).mT


def square(x: Tensor) -> Tensor:
    """At least as many rows as columns: zero ones added."""
    return torch.nn.functional.pad(x, (0, 0, 0, max(0, x.shape[-1] - x.shape[-2])))


def _completed(left: Tensor, right: Tensor) -> Tensor:
    """An invertible `[E, C]`, the first columns of whose inverse transpose are F, from `E^H F = 1`, both `(n, r)`.

    C spans what F doesn't see, in the basis that is best conditioned.
    """
    rank = left.shape[-1]
    outside = [torch.linalg.svd(x, full_matrices=True).U[:, rank:] for x in (left, right)]
    _, size, vh = torch.linalg.svd(outside[0].mH @ outside[1])
    return torch.cat([left, outside[1] @ vh.mH * size.rsqrt()], -1)
