"""What a factor of a symmetry group is: everything that is known of one kind of move, in one place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.loose import Loose

Parts = dict[str, Tensor]
"""The tensors of an element, or of a block's weights, by name."""


@dataclass(frozen=True)
class Factor(ABC):
    """One factor of a block's symmetry group, with all its operations.

    An element is a few tensors by name, its parts, with leading dimensions `...` where it is a batch of elements; a
    block's weights are tensors by name too, with the same leading dimensions. Operations take dictionaries that may
    hold more than they need; `act` returns all weights, the others this factor's parts. Nothing is changed in place,
    and all is float64 (complex128, or int64 for permutations).

    With elements g, h, k of a factor, weights w of a block that has it, and the block's function f, every subclass must
    satisfy these laws, to which `tests/properties/test_factor_laws.py` holds all of them:

    * `act(identity, w) = w` and `act(compose(g, h), w) = act(g, act(h, w))`: an action;
    * `compose(g, compose(h, k)) = compose(compose(g, h), k)` and `compose(inverse(g), g) = identity`: a group;
    * `f(act(g, w)) = f(w)`: a symmetry;
    * `contains` of what is sampled, composed, inverted or charted, and not of `broken` elements;
    * `chart(0) = identity`, and the derivative of `act(chart(x), w)` by all coordinates x at 0 has rank `dimension`;
    * with e another factor that acts before this one, and h' = `carried(h, e, g)`: acting with h and then with g is
      acting with g and then with h': what makes a product of factors a group;
    * where weights w have a canonical gauge, `act(canonical(w), w)` is the same for all of an orbit.
    """

    @property
    @abstractmethod
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """Its parts by name, and what runs along the first axes of each: "head" and "query", "expert" and "unit".

        Permutations of these carry the parts along; an axis of size one is shared.
        """

    @abstractmethod
    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """The identity element."""

    @abstractmethod
    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Random elements.

        Args:
            generator: CPU generator; the only source of randomness.
            batch: Leading dimensions.
            condition: Condition number of maps, and largest ratio of two scales.
            shift: Standard deviation of what is added, where that is free.
        """

    @abstractmethod
    def compose(self, second: Parts, first: Parts) -> Parts:
        """The element that acts as `first` and then `second`."""

    @abstractmethod
    def inverse(self, element: Parts) -> Parts:
        """The inverse element."""

    @abstractmethod
    def act(self, element: Parts, weights: Parts) -> Parts:
        """All the weights, those moved that this factor moves; weights that aren't there are passed over."""

    @abstractmethod
    def contains(self, element: Parts) -> bool:
        """Whether parts of the right shapes are an element."""

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the coordinates around the identity, by name; none of a discrete factor."""
        return {}

    def chart(self, coordinates: Parts) -> Parts:
        """The parts that some of the coordinates move, differentiable by them: the identity's where all are 0."""
        return {name: self.exponential(coordinates[name]) for name in self.coordinates if name in coordinates}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """A part at its coordinates: they themselves where elements are added."""
        return coordinates

    def slowed(self, coordinates: Tensor, share: float) -> Tensor:
        """Coordinates of which rotations stay as they are, and a share is left of all that stretches or shifts."""
        return share * coordinates

    @property
    def dimension(self) -> int:
        """Real dimension of the continuous part."""
        return sum(map(math.prod, self.coordinates.values()))

    @property
    def idle(self) -> bool:
        """Whether no point of a line between two models depends on where this factor has moved its ends."""
        return False

    def carried(self, parts: Parts, by: Factor, element: Parts) -> Parts:
        """This factor's parts after an element of another factor that acts before it."""
        return by.reordered(element, {name: parts[name] for name in self.axes}, self.axes)

    def reordered(self, element: Parts, parts: Parts, axes: Mapping[str, tuple[str, ...]]) -> Parts:
        """The parts of another factor in the order that this one brings: its own business if it permutes nothing."""
        return parts

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """The element that brings weights, without leading dimensions, into the gauge that all of an orbit share.

        Args:
            weights: Already moved by the factors that act before this one.
            loose: Takes the names of choices that rounding decides.
        """
        return self.identity((), next(iter(weights.values())).device)

    def sizes(self, element: Parts) -> dict[str, Tensor]:
        """The singular values of maps, `(..., heads, n)`, by the pair that they move: what condition numbers are of."""
        return {}

    def read(self, weights: Parts) -> Parts:
        """Weights as they are stored in the form that this factor acts on."""
        return weights

    def stored(self, weights: Parts) -> Parts:
        """The inverse of `read`."""
        return weights


def haar(n: int, batch: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Orthogonal matrices, or unitary ones where they are complex, uniformly random, `(*batch, n, n)`."""
    q, r = torch.linalg.qr(torch.randn(*batch, n, n, generator=generator, dtype=dtype))
    return q * r.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2)


def conditioned(
    n: int, batch: tuple[int, ...], generator: torch.Generator, condition: float, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Invertible `U = P diag(σ) W`, `(*batch, n, n)`: P and W as `haar`, ln σ evenly spread over ±½ ln(condition)."""
    half = 0.5 * math.log(condition)
    scales = torch.linspace(-half, half, n, dtype=torch.float64).exp()
    return haar(n, batch, generator, dtype) * scales @ haar(n, batch, generator, dtype)


def eye(n: int, batch: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Identity matrices, `(*batch, n, n)`."""
    return torch.eye(n, dtype=torch.float64, device=device).expand(*batch, n, n).clone()
