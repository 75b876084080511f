"""Groups as semi-direct products of factors, and their elements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.weights import Weights


@dataclass(frozen=True)
class Element:
    """An element of a product, or a batch of them.

    Attributes:
        parts: Its tensors by name, those of all factors, with leading dimensions `...`; as files hold them.
    """

    parts: Mapping[str, Tensor]

    def tensors(self) -> Parts:
        """All parts by name."""
        return dict(self.parts)

    def having(self, parts: Mapping[str, Tensor]) -> Self:
        """The same element but for some parts."""
        return replace(self, parts={**self.parts, **parts})

    def __getitem__(self, index: int) -> Self:
        """One element of a batch."""
        return replace(self, parts={name: part[index] for name, part in self.parts.items()})

    def to(self, device: torch.device | str) -> Self:
        """The same element on another device."""
        return replace(self, parts={name: part.to(device) for name, part in self.parts.items()})

    def copy_(self, other: Element) -> None:
        """Take over another element's values, whatever device they are on."""
        for name, part in other.parts.items():
            self.parts[name].copy_(part)


AnyElement = TypeVar("AnyElement", bound=Element)
AnyWeights = TypeVar("AnyWeights", bound=Weights)


class Product(ABC, Generic[AnyElement, AnyWeights]):
    """A group that is a semi-direct product of factors: `g = g_n ... g_1`, the first acting first.

    Each factor carries those that act after it (`Factor.carried`), so that everything follows from theirs. Operations
    are those of `Factor`, of elements and weights that may have leading dimensions `...`.

    Attributes:
        element: The class of its elements.
    """

    element: type[AnyElement]

    @abstractmethod
    def build(self) -> tuple[Factor, ...]:
        """The factors that follow from the facts, in the order in which they act."""

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The same, built once."""
        return self.build()

    @property
    def drawn(self) -> Sequence[Factor]:
        """The factors in the order in which random numbers are drawn for them: a seed means what it always meant."""
        return self.factors

    @property
    def unread(self) -> tuple[Factor, ...]:
        """Factors of the stored weights that have no part in elements, since reading takes away what they move."""
        return ()

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part; the discrete one adds nothing."""
        return sum(factor.dimension for factor in (*self.factors, *self.unread))

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> AnyElement:
        """The identity element."""
        return self.element({n: part for factor in self.factors for n, part in factor.identity(batch, device).items()})

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> AnyElement:
        """Random elements; arguments as `Factor.sample`."""
        drawn: Parts = {}
        for factor in self.drawn:
            drawn |= factor.sample(generator, batch, condition, shift)
        return self.element(drawn)

    def compose(self, second: AnyElement, first: AnyElement) -> AnyElement:
        """The element that acts as `first` and then `second`."""
        found, then, parts = Parts(), second.tensors(), first.tensors()
        for index, factor in enumerate(self.factors):
            found |= factor.compose(then, parts)
            parts = self._carried(index, parts, then)
        return self.element(found)

    def inverse(self, element: AnyElement) -> AnyElement:
        """The inverse element."""
        found, parts = Parts(), element.tensors()
        for index, factor in enumerate(self.factors):
            found |= factor.inverse(parts)
            parts = self._carried(index, parts, found)
        return self.element(found)

    def _carried(self, index: int, parts: Parts, element: Parts) -> Parts:
        """Parts of all factors after one of them, after that one's element."""
        by, moved = self.factors[index], dict(parts)
        for later in self.factors[index + 1 :]:
            moved |= later.carried(parts, by, element)
        return moved

    def act(self, element: AnyElement, weights: AnyWeights) -> AnyWeights:
        """New weights, float64, after all factors; the block's function is the same."""
        parts, moved = element.tensors(), weights.tensors()
        for factor in self.factors:
            moved = factor.act(parts, moved)
        return weights.of(moved)

    def contains(self, element: AnyElement) -> bool:
        """Whether an element of the right shapes is one of this group."""
        parts = element.tensors()
        return all(factor.contains(parts) for factor in self.factors)

    def charted(self, coordinates: Parts) -> Parts:
        """The parts that coordinates of the factors move."""
        return {name: part for factor in self.factors for name, part in factor.chart(coordinates).items()}

    def condition(self, element: Parts) -> Tensor:
        """Condition number of every head's maps, largest over smallest singular value, all pairs one after another."""
        pairs: dict[str, list[Tensor]] = {}
        for factor in self.factors:
            for pair, sizes in factor.sizes(element).items():
                pairs.setdefault(pair, []).append(sizes)
        joined = (torch.cat(sizes, -1) for sizes in pairs.values())
        found = [(x.amax(-1) / x.amin(-1)).flatten() for x in joined]
        return torch.cat(found) if found else torch.ones(1, dtype=torch.float64)

    def read(self, weights: Parts) -> Parts:
        """Weights as they are stored in the form that elements act on."""
        for factor in (*self.factors, *self.unread):
            weights = factor.read(weights)
        return weights

    def stored(self, weights: Parts, like: Parts | None = None) -> Parts:
        """The inverse of `read`: what that takes away is as in other stored weights, or zero."""
        for factor in self.factors:
            weights = factor.stored(weights)
        for factor in self.unread if like is not None else ():
            weights = factor.act(factor.inverse(factor.canonical(like or {}, Loose(0.0))), weights)
        return weights
