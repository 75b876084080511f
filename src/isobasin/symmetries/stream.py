"""The symmetry group of the residual stream: one map of the basis that all layers write into and read from.

With row vectors x of width d, an element T takes x to `x T`: what writes into the stream moves as `W <- W T`, what
reads from it as `W <- T^{-1} W`, W of shape (in, out). Which T a model allows follows from what stands between the
stream and its readers. A normalisation `y = x̂ g + n` is folded into its readers first, `W <- diag(g) W` and
`b <- b + n W`, and taken out of them again with any other gain and bias. That is no part of T, and T may then be any
map that commutes with the bare normalisation x̂.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from isobasin.symmetries.factor import conditioned, haar


class Basis(StrEnum):
    """Which maps of the stream leave the function unchanged.

    * permutation: S_d, where a gain or a tied embedding holds on to every coordinate.
    * signed: signed permutations, S_d ⋉ {±1}^d: likewise where signs pass too (RMSNorm).
    * centred: orthogonal maps that fix the vector of ones: O(d - 1). All that LayerNorm lets pass once its gain is
      folded: it subtracts the mean, so that direction is no part of the stream.
    * orthogonal: O(d): RMSNorm whose gain is folded.
    * linear: GL(d): no normalisation at all.
    """

    permutation = "permutation"
    signed = "signed"
    centred = "centred"
    orthogonal = "orthogonal"
    linear = "linear"

    @property
    def discrete(self) -> bool:
        """Whether elements only permute coordinates, and perhaps change their signs."""
        return self in (Basis.permutation, Basis.signed)


# Gains smaller than this share of their root mean square are replaced by it where readers are divided by them.
_SMALL_GAIN = 1e-3


def nonzero(gains: Tensor) -> Tensor:
    """The same gains, but for zeros: readers that saw nothing of a coordinate are zero there, whatever they see of it.

    The function is the same with 1 in the place of a 0, and nothing is divided by that.
    """
    return torch.where(gains == 0, torch.ones_like(gains), gains)


def divisible(gains: Tensor) -> Tensor:
    """The same gains `(..., n)`, but for those that are too small to divide readers by."""
    least = _SMALL_GAIN * gains.square().mean(-1, keepdim=True).sqrt()
    return nonzero(torch.where(gains.abs() < least, least.copysign(gains), gains))


@dataclass(frozen=True)
class StreamElement:
    """A map of the stream, and the gains and biases that the folded normalisations have before and after.

    Attributes:
        matrix: T, `(d, d)` float64; `x <- x T`.
        gains: Those after the move by normalisation, `(norms, d)`; no entry is 0.
        biases: Likewise; a normalisation whose bias can't pass into its readers doesn't take this one, see
            `isobasin.symmetries.along`.
        old_gains: Those of the model that the element was found for, but for zeros: what the inverse goes back to.
        old_biases: Likewise.
    """

    matrix: Tensor
    gains: Tensor
    biases: Tensor
    old_gains: Tensor
    old_biases: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name; `StreamElement(**parts)` is the inverse."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> StreamElement:
        """The same element on another device."""
        return StreamElement(**{name: part.to(device) for name, part in self.tensors().items()})


@dataclass(frozen=True)
class StreamGroup:
    """The symmetry group of one model's residual stream: maps of its basis, gains and biases of normalisations.

    Attributes:
        width: d.
        basis: Which maps it has.
        norms: How many normalisations are folded, whose gains and biases are free.
        keep_gains: Whether it is the subgroup in which none is folded, though some could be.
    """

    width: int
    basis: Basis
    norms: int = 0
    keep_gains: bool = False

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part, gains and biases of normalisations not counted."""
        d = self.width
        continuous = {Basis.centred: (d - 1) * (d - 2) // 2, Basis.orthogonal: d * (d - 1) // 2, Basis.linear: d * d}
        return continuous.get(self.basis, 0)

    def identity(
        self, gains: Tensor | None = None, biases: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> StreamElement:
        """The element that moves nothing in a model with these gains and biases, `(norms, d)` each; ones and zeros.

        A gain of 0 becomes another one, which changes no function (`nonzero`).
        """
        if gains is None:
            gains = torch.ones(self.norms, self.width, dtype=torch.float64, device=device)
        if biases is None:
            biases = torch.zeros_like(gains)
        matrix = torch.eye(self.width, dtype=torch.float64, device=gains.device)
        return StreamElement(matrix, nonzero(gains), biases, nonzero(gains), biases.clone())

    def contains(self, element: StreamElement, tolerance: float = 1e-9) -> bool:
        """Whether the map is one that the group has, up to rounding, and no gain is 0."""
        t, d = element.matrix, self.width
        if t.shape != (d, d) or not all(bool(x.isfinite().all()) for x in element.tensors().values()):
            return False
        if bool((element.gains == 0).any()):
            return False
        if self.basis is Basis.linear:
            return bool(torch.linalg.svdvals(t)[-1] > 0)
        if float((t @ t.mT - torch.eye(d, dtype=t.dtype, device=t.device)).abs().max()) > tolerance:
            return False
        if self.basis is Basis.centred:
            return float((t.sum(0) - 1).abs().max()) <= tolerance * math.sqrt(d)
        if self.basis.discrete:
            allowed = (t == 0) | (t == 1) | ((t == -1) if self.basis is Basis.signed else torch.zeros_like(t).bool())
            return bool(allowed.all())
        return True

    def sample(
        self, gains: Tensor, biases: Tensor, generator: torch.Generator, condition: float = 10.0
    ) -> StreamElement:
        """A random element for a model with these gains and biases.

        Args:
            gains: `(norms, d)` float64; each that isn't too small (`divisible`) is multiplied by a positive number,
                `ln` of it uniform on ±½ ln(condition).
            biases: `(norms, d)`; each gets a normal one added, of the size of the gains.
            generator: CPU generator; the only source of randomness.
            condition: Largest ratio of two gains' factors, and the condition number of a map in GL(d).
        """
        spread = (torch.rand(gains.shape, generator=generator, dtype=torch.float64) - 0.5) * math.log(condition)
        shift = torch.randn(biases.shape, generator=generator, dtype=torch.float64).to(biases.device)
        size = gains.square().mean().sqrt() if gains.numel() else gains.sum()
        matrix = self._sample_matrix(generator, condition).to(gains.device)
        # A family of normalisations without biases has zeros here, and keeps them.
        has_bias = (biases != 0).any(-1, keepdim=True)
        moved = divisible(gains) * spread.to(gains.device).exp()
        return StreamElement(matrix, moved, biases + shift * size * has_bias, nonzero(gains), biases.clone())

    def compose(self, second: StreamElement, first: StreamElement) -> StreamElement:
        """The element that acts as `first` and then `second`."""
        return replace(
            second, matrix=first.matrix @ second.matrix, old_gains=first.old_gains, old_biases=first.old_biases
        )

    def inverse(self, element: StreamElement) -> StreamElement:
        """The element that takes the move back."""
        matrix = torch.linalg.inv(element.matrix) if self.basis is Basis.linear else element.matrix.mT.contiguous()
        return StreamElement(matrix, element.old_gains, element.old_biases, element.gains, element.biases)

    def _sample_matrix(self, generator: torch.Generator, condition: float) -> Tensor:
        d = self.width
        if self.basis.discrete:
            order = torch.rand(d, generator=generator, dtype=torch.float64).argsort()
            signs = torch.randint(0, 2, (d,), generator=generator).double() * 2 - 1
            matrix = torch.eye(d, dtype=torch.float64)[order]
            return matrix * signs if self.basis is Basis.signed else matrix
        if self.basis is Basis.centred:
            return lift(haar(d - 1, (), generator), complement(d))
        if self.basis is Basis.orthogonal:
            return haar(d, (), generator)
        return conditioned(d, (), generator, condition)

    def __str__(self) -> str:
        d = self.width
        names = {
            Basis.permutation: f"S_{d}",
            Basis.signed: f"{{±1}}^{d} ⋊ S_{d}",
            Basis.centred: f"O({d - 1})",
            Basis.orthogonal: f"O({d})",
            Basis.linear: f"GL({d})",
        }
        return names[self.basis]


def complement(width: int, device: torch.device | str = "cpu") -> Tensor:
    """An orthonormal basis of what is orthogonal to the vector of ones, `(d, d - 1)` (Helmert's)."""
    basis = torch.ones(width, width, dtype=torch.float64, device=device).triu()[:, 1:]
    index = torch.arange(1, width, dtype=torch.float64, device=device)
    basis[index.long(), torch.arange(width - 1, device=device)] = -index
    return basis / (index * (index + 1)).sqrt()


def lift(rotation: Tensor, basis: Tensor) -> Tensor:
    """The map that acts as `rotation` on the span of `basis`' columns and fixes the vector of ones, `(d, d)`."""
    d = basis.shape[0]
    return basis @ rotation @ basis.mT + torch.full((d, d), 1 / d, dtype=basis.dtype, device=basis.device)


@dataclass(frozen=True)
class Placing:
    """A map with one entry in every row and column: coordinate j was coordinate `order[j]`, times `factors[j]`."""

    order: Tensor
    factors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Placing:
        """The same as a matrix that has no other entries."""
        order = matrix.abs().argmax(0)
        return cls(order, matrix.gather(0, order[None])[0])

    def __len__(self) -> int:
        return len(self.order)

    def placed(self, tensor: Tensor, axis: int) -> Tensor:
        """`tensor` with its slices along an axis in other places, times their factors."""
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return tensor.gather(axis, self.order.reshape(shape).expand_as(tensor)).mul_(self.factors.reshape(shape))


def move_axis(matrix: Tensor | Placing, tensor: Tensor, axis: int) -> Tensor:
    """`tensor` with `matrix` applied along an axis of the stream: `new[.. j ..] = Σ_i tensor[.. i ..] T[i, j]`.

    As in all functions of an axis here, it may hold several vectors of the stream, one after the other.
    """
    parts = copies(tensor, axis, len(matrix))
    if isinstance(matrix, Placing):
        return matrix.placed(parts, axis + 1).reshape(tensor.shape)
    return torch.movedim(torch.movedim(parts, axis + 1, -1) @ matrix, -1, axis + 1).reshape(tensor.shape)


def rows(tensor: Tensor, axis: int, width: int) -> Tensor:
    """`tensor` as a matrix whose last axis runs along the stream, `(n, d)`."""
    return torch.movedim(copies(tensor, axis, width), axis + 1, -1).reshape(-1, width)


def copies(tensor: Tensor, axis: int, width: int) -> Tensor:
    """`tensor` with one more axis, which counts the stream's vectors, before the one that runs along each."""
    return tensor.unflatten(axis, (-1, width))


def centred(tensor: Tensor, axis: int, width: int) -> Tensor:
    """`tensor` without its means along an axis of the stream."""
    parts = copies(tensor, axis, width)
    return (parts - parts.mean(axis + 1, keepdim=True)).reshape(tensor.shape)


def contract(vector: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """What a constant vector of the stream adds to the outputs of a weight: `n W`, in the shape of its bias."""
    return torch.tensordot(vector.repeat(tensor.shape[axis] // len(vector)), torch.movedim(tensor, axis, 0), 1)


def scale_axis(gains: Tensor, tensor: Tensor, axis: int, *, own: bool = False) -> Tensor:
    """`tensor` with each slice along an axis multiplied by its gain; in its own memory if it is the caller's own."""
    shape = [1] * tensor.ndim
    shape[axis] = -1
    factors = gains.repeat(tensor.shape[axis] // len(gains)).reshape(shape)
    return tensor.mul_(factors) if own else tensor * factors
