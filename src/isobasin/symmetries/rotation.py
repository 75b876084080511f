"""O(n): the maps of a latent that its norm lets pass, once its gains are folded into what reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import square
from isobasin.symmetries.exponential import exponential
from isobasin.symmetries.factor import Factor, Parts, eye, haar
from isobasin.symmetries.loose import Loose


@dataclass(frozen=True)
class Rotation(Factor):
    """O(n) of a latent: `D <- D P`, with the bias of D as one more row, and readers `W <- P^T W`.

    Attributes:
        part: The name of P, `(*batch, n, n)`, in elements.
        size: n.
        writers: D and its bias by name.
        readers: What reads the latent, `(..., heads..., n, features)`.
    """

    part: str
    size: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What to call the latent."""
        return f"{self.part.removeprefix('latent.')}_latent"

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """One map for all heads."""
        return {self.part: ()}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """P = 1."""
        return {self.part: eye(self.size, batch, device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Uniformly random."""
        return {self.part: haar(self.size, batch, generator)}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """`P = P_1 P_2`."""
        return {self.part: first[self.part] @ second[self.part]}

    def inverse(self, element: Parts) -> Parts:
        """`P^T`."""
        return {self.part: element[self.part].mT.contiguous()}

    def contains(self, element: Parts) -> bool:
        """Whether the map is orthogonal up to rounding."""
        p = element[self.part]
        return torch.allclose(p.mT @ p, eye(self.size, (), p.device), rtol=0, atol=1e-9)

    def act(self, element: Parts, weights: Parts) -> Parts:
        """What writes the latent, and what reads it."""
        p, moved = element[self.part], dict(weights)
        names = [name for name in self.writers if name in weights]
        rows = [weights[name].reshape(*p.shape[:-2], -1, self.size) for name in names]
        if rows:
            # A bias is one more row: by itself it is multiplied in another way alone than in a stack of blocks, and an
            # element is to give the same bits in both.
            parts = (torch.cat(rows, -2) @ p).split([x.shape[-2] for x in rows], -2)
            moved |= {name: part.reshape(weights[name].shape) for name, part in zip(names, parts, strict=True)}
        for name in self.readers:
            if name in weights:
                moved[name] = by_heads(p.mT, weights[name]) @ weights[name]
        return moved

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """What is below the diagonal of S in `P = exp(S - S^T)`."""
        return {self.part: (self.size * (self.size - 1) // 2,)}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """`exp(S - S^T)`."""
        return rotated(coordinates)

    def slowed(self, coordinates: Tensor, share: float) -> Tensor:
        """S as it is."""
        return coordinates

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """The basis in which what writes the latent has orthogonal columns, the longest first."""
        rows = [weights[name].reshape(-1, self.size) for name in self.writers if name in weights]
        down = square(torch.cat(rows))
        _, sizes, basis = torch.linalg.svd(down, full_matrices=False)
        loose.check("rank", sizes <= loose.eps * sizes[:1])
        loose.check("singular values", -sizes.diff() <= loose.eps * sizes[:1])
        return {self.part: basis.mT * loose.phase(down @ basis.mT)}

    def __str__(self) -> str:
        return f"O({self.size})"


def rotated(coordinates: Tensor) -> Tensor:
    """The map `exp(S - S^T)` of the coordinates below the diagonal of S, `(n (n - 1) / 2)` to `(n, n)`."""
    n = round((1 + math.sqrt(1 + 8 * len(coordinates))) / 2)
    rows, columns = torch.tril_indices(n, n, -1, device=coordinates.device)
    lower = coordinates.new_zeros(n, n).index_put((rows, columns), coordinates)
    return exponential(lower - lower.mT)


def by_heads(x: Tensor, like: Tensor) -> Tensor:
    """A matrix that all heads share, with an axis of one for each of theirs."""
    return x.reshape(*x.shape[:-2], *(1,) * (like.ndim - x.ndim), *x.shape[-2:])
