"""The pair of weights that enters a head's function only by its product, and the maps that leave this unchanged.

A pair `(L, R)` (Q and K, or V and O) enters the function only through `L R^T`, and on rotated planes only
through `l_p r_p^H` of the complex columns `l_p = L[:, a] + i L[:, b]`. A map U acts as

    L <- L U^T,     R <- R U^{-1}

on the columns that a factor has: `linear` on those that don't rotate, `planes` and `shared_planes` on those that do
(arXiv 2606.17830, Theorems 2.1, 4.1, 4.2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from isobasin.symmetries.exponential import exponential, inverse
from isobasin.symmetries.factor import Factor, Parts, conditioned, eye
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.weights import AXES

Columns = slice | list[int]


def evenly(indices: Sequence[int]) -> Columns:
    """Indices as a slice where they are evenly spaced, which makes a view of a tensor instead of a copy."""
    first, step = (indices[0], indices[1] - indices[0]) if len(indices) > 1 else (indices[0] if indices else 0, 1)
    even = list(range(first, first + step * len(indices), step)) if step > 0 else None
    return slice(first, first + step * len(indices), step) if even == list(indices) else list(indices)


@dataclass(frozen=True)
class BilinearGroup:
    """The maps that leave `L R^T` (or `L R_θ R^T` for every rotation angle) of one head unchanged.

    A map `U` acts as `L <- L U^T`, `R <- R U^{-1}`. On coordinates that are not rotated `U` is any
    invertible matrix, GL(n); on the pairs of coordinates in `planes`, which rotary positions rotate at
    pairwise distinct frequencies, it is one non-zero complex number per pair, H = (C*)^p
    (arXiv 2606.17830, Theorems 2.1, 4.1 and 4.2). Of m pairs that always turn by the very same angle it is any
    invertible complex matrix, GL(m, C).

    Attributes:
        features: Width of a head, d_h.
        planes: Pairs `(a, b)` of feature indices that rotate together as `a + ib`.
        alike: Planes that turn by the very same angle at all positions, by their number in `planes`, two or more each.
            (Planes of one frequency that turn with another coordinate, as the rows and the columns of an image, don't.)
    """

    features: int
    planes: tuple[tuple[int, int], ...] = ()
    alike: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        together = [i for block in self.alike for i in block]
        known = all(0 <= i < len(self.planes) for i in together)
        if len(set(together)) != len(together) or not known or any(len(block) < 2 for block in self.alike):
            raise ValueError(f"planes that turn alike must be disjoint sets of two or more planes: {self.alike}")
        flat = [i for plane in self.planes for i in plane]
        if len(set(flat)) != len(flat) or any(not 0 <= i < self.features for i in flat):
            raise ValueError(f"planes must be disjoint pairs of indices below {self.features}: {self.planes}")

    @cached_property
    def linear(self) -> tuple[int, ...]:
        """The feature indices that no plane holds, in order: GL(len(linear)) acts on them."""
        rotated = {i for plane in self.planes for i in plane}
        return tuple(i for i in range(self.features) if i not in rotated)

    @cached_property
    def alone(self) -> tuple[int, ...]:
        """The planes that turn like no other, by number."""
        together = {i for block in self.alike for i in block}
        return tuple(i for i in range(len(self.planes)) if i not in together)

    @cached_property
    def frequencies(self) -> tuple[int, ...]:
        """For every plane the number of the first one that turns alike: itself where none does."""
        first = {i: min(block) for block in self.alike for i in block}
        return tuple(first.get(i, i) for i in range(len(self.planes)))

    @cached_property
    def columns(self) -> tuple[Columns, Columns, Columns]:
        """How to index the unrotated features, and the real and the imaginary ones of the planes."""
        return evenly(self.linear), evenly([a for a, _ in self.planes]), evenly([b for _, b in self.planes])


def linear_part(pair: BilinearGroup, x: Tensor) -> Tensor:
    """The unrotated columns of `x`, `(..., rows, n)`."""
    return x if not pair.planes else x[..., pair.columns[0]]


def plane_part(pair: BilinearGroup, x: Tensor) -> Tensor:
    """The planes of `x` as complex columns `x[:, a] + i x[:, b]`, `(..., rows, p)`."""
    _, real, imaginary = pair.columns
    return torch.complex(x[..., real], x[..., imaginary])


def join(pair: BilinearGroup, linear: Tensor, planes: Tensor) -> Tensor:
    """The inverse of (`linear_part`, `plane_part`): columns back in their places."""
    if not pair.planes:
        return linear
    rest, real, imaginary = pair.columns
    out = linear.new_empty(*linear.shape[:-1], pair.features)
    out[..., rest], out[..., real], out[..., imaginary] = linear, planes.real, planes.imag
    return out


def column_squares(x: Tensor) -> Tensor:
    """Squared norm of every column, real or complex, `(..., columns)`."""
    # The absolute value of a complex number costs a hypot, which is many times slower; a norm is one pass over memory.
    if x.is_complex():
        return torch.linalg.vector_norm(torch.view_as_real(x.resolve_conj()), dim=-3).square().sum(-1)
    return torch.linalg.vector_norm(x, dim=-2).square()


@dataclass(frozen=True)
class Roles:
    """The weights of a pair by name.

    Attributes:
        left: The weight that L is, and its bias, which is one more row.
        right: The same of R.
        free: A bias that is free to shift: it moves with its weight, and no product depends on it.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    free: str | None = None


@dataclass(frozen=True)
class Bilinear(Factor):
    """Maps of some columns of a pair, one for each key/value head or one for all.

    Attributes:
        part: The name of their tensor in elements.
        name: Of the pair.
        pair: Its features.
        roles: Its weights.
        heads: How many maps: `(g,)`, or `()` for one that all heads share.
        width: How many columns make one product `L R^H` that no map changes.
        own_axes: How many axes one map has.
    """

    part: str
    name: str
    pair: BilinearGroup
    roles: Roles
    heads: tuple[int, ...]
    width: int

    own_axes: ClassVar[int]

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The one part."""
        return {self.part: ("head",) if self.heads else ()}

    @abstractmethod
    def columns(self, x: Tensor) -> Tensor:
        """This factor's columns of `x`, `(..., rows, features)`; complex where they rotate."""

    @abstractmethod
    def with_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        """The inverse: a new tensor like `x` with other columns."""

    @abstractmethod
    def left(self, element: Tensor, columns: Tensor) -> Tensor:
        """`L U^T` of this factor's columns, `(*batch, rows, n)`."""

    @abstractmethod
    def right(self, element: Tensor, columns: Tensor) -> Tensor:
        """`R U^{-1}` likewise."""

    @abstractmethod
    def balanced(self, left: Tensor, right: Tensor, loose: Loose) -> Tensor:
        """The map that gives both sides, `(*batch, rows, n)`, one size, in the gauge that an orbit shares."""

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Both sides moved, with their biases as rows."""
        u, moved = element[self.part], dict(weights)
        lead = u.ndim - self.own_axes
        for names, side in ((self.roles.left, self.left), (self.roles.right, self.right)):
            for name in names:
                if name in weights:
                    x = weights[name]
                    rows = x.reshape(*x.shape[:lead], -1, x.shape[-1])
                    moved[name] = self.with_columns(rows, side(u, self.columns(rows))).reshape(x.shape)
        return moved

    def sides(self, weights: Parts) -> tuple[Tensor, Tensor]:
        """This factor's columns of L and R, `(..., heads, slots, rows, n)`, biases that take part as last rows.

        A side that query heads share has one slot, the other one for each query head.
        """
        left, right = map(self.columns, self.features(weights))
        return left, right

    def features(self, weights: Parts) -> tuple[Tensor, Tensor]:
        """All columns of L and R, real, in the same axes."""
        left, right = (self._tall(weights, names) for names in (self.roles.left, self.roles.right))
        return left, right

    def _tall(self, weights: Parts, names: tuple[str, ...]) -> Tensor:
        rows = [weights[names[0]]]
        rows += [weights[name].unsqueeze(-2) for name in names[1:] if name in weights and name != self.roles.free]
        x = torch.cat(rows, -2) if len(rows) > 1 else rows[0]
        slots = len(AXES.get(names[0], ())) - len(self.heads)
        return x.unsqueeze(-3) if slots == 0 else x.flatten(-2 - slots, -3)

    def with_sides(self, weights: Parts, left: Tensor, right: Tensor) -> Parts:
        """The weights with other columns, the inverse of `sides`; a bias that takes no part stays."""
        moved = dict(weights)
        for names, columns in ((self.roles.left, left), (self.roles.right, right)):
            rows = weights[names[0]].shape[-2]
            parts = {names[0]: columns[..., :rows, :]}
            parts |= {name: columns[..., rows, :] for name in names[1:] if columns.shape[-2] > rows}
            for name, part in parts.items():
                x = weights[name]
                moved[name] = self.with_columns(x.reshape(*part.shape[:-1], x.shape[-1]), part).reshape(x.shape)
        return moved

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """Balanced: both sides of one size."""
        left, right = (side.flatten(-3, -2) for side in self.sides(weights))
        return {self.part: self.balanced(left, right, loose)}


@dataclass(frozen=True)
class Matrices(Bilinear):
    """Maps that are invertible matrices, real or complex: `L <- L U^T, R <- R conj(U)^{-1}`, U `(*batch, heads, n, n)`.

    A head may have several, one for each set of n columns: U is `(*batch, heads, sets, n, n)` then.

    Attributes:
        dtype: Of the maps.
    """

    dtype = torch.float64
    own_axes = 2

    @property
    def several(self) -> tuple[int, ...]:
        """How many sets of columns a head has, if that counts them."""
        return ()

    def sets(self, columns: Tensor) -> Tensor:
        """Columns `(..., rows, ·)` set by set, `(..., sets, rows, n)`."""
        return columns

    def unset(self, sets: Tensor) -> Tensor:
        """The inverse of `sets`."""
        return sets

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """U = 1."""
        return {self.part: eye(self.width, (*batch, *self.heads, *self.several), device).to(self.dtype)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """As `conditioned` has it."""
        batch = *batch, *self.heads, *self.several
        return {self.part: conditioned(self.width, batch, generator, condition, self.dtype)}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """`U = U_2 U_1`."""
        return {self.part: second[self.part] @ first[self.part]}

    def inverse(self, element: Parts) -> Parts:
        """`U^{-1}`."""
        return {self.part: torch.linalg.inv(element[self.part])}

    def contains(self, element: Parts) -> bool:
        """Whether every U has an inverse."""
        return bool((torch.linalg.svdvals(element[self.part])[..., -1] > 0).all())

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """X of `U = exp(X)`, real and imaginary parts."""
        parts = (2,) if self.dtype.is_complex else ()
        return {self.part: (*self.heads, *self.several, self.width, self.width, *parts)}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """`exp(X)`."""
        return exponential(torch.view_as_complex(coordinates) if self.dtype.is_complex else coordinates)

    def slowed(self, coordinates: Tensor, share: float) -> Tensor:
        """The skew part of X as it is, and a share of the rest."""
        x = torch.view_as_complex(coordinates) if self.dtype.is_complex else coordinates
        skew = (x - x.mH) / 2
        found = skew + share * (x - skew)
        return torch.view_as_real(found) if self.dtype.is_complex else found

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """Singular values of every U."""
        return {self.name: torch.linalg.svdvals(element[self.part]).flatten(-1 - len(self.several))}

    def left(self, element: Tensor, columns: Tensor) -> Tensor:
        """`L U^T`."""
        return self.unset(self.sets(columns) @ element.mT)

    def right(self, element: Tensor, columns: Tensor) -> Tensor:
        """`R conj(U)^{-1}`."""
        # Rows are many more than columns: one inverse costs less than a triangular solution for each, and the error of
        # the product `L R^T` has the same bound.
        return self.unset(self.sets(columns) @ inverse(element.conj()))

    def balanced(self, left: Tensor, right: Tensor, loose: Loose) -> Tensor:
        """As `balance` has it."""
        return balance(self.sets(left), self.sets(right), loose)


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
