"""Shifts: what may be added to a bias, because softmax cancels it or another bias takes it back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.weights import AXES


@dataclass(frozen=True)
class Added(Factor):
    """Vectors that are added to weights, of the shapes of its coordinates; nothing where that isn't free."""

    free = True

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of its parts by name."""

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """Zero."""
        shapes = self.shapes.items()
        return {name: torch.zeros(*batch, *shape, dtype=torch.float64, device=device) for name, shape in shapes}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Normal; zero where it isn't free."""
        shapes, size = self.shapes.items(), shift * self.free
        return {n: size * torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for n, s in shapes}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """The sum."""
        return {name: first[name] + second[name] for name in self.axes}

    def inverse(self, element: Parts) -> Parts:
        """The negative."""
        return {name: -element[name] for name in self.axes}

    def contains(self, element: Parts) -> bool:
        """Any, or zero where it isn't free."""
        return self.free or not any(bool(element[name].any()) for name in self.axes)

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """The vectors themselves."""
        return self.shapes if self.free else {}


@dataclass(frozen=True)
class Shift(Added):
    """R^n added to a weight: to the bias of keys on what doesn't rotate, to that of values, to all rows of a router.

    A shift is a direction of the weight that it is added to, so that whatever acts on that weight acts on the shift.

    Attributes:
        part: Its name in elements.
        weight: What it is added to; there may be none.
        shape: Of one shift: heads, and n.
        free: Whether it is free; the group is trivial where it isn't.
    """

    part: str
    weight: str
    shape: tuple[int, ...]
    free: bool = True

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """The one part, with the axes of the weight."""
        return {self.part: AXES.get(self.weight, ())}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the one part."""
        return {self.part: self.shape}

    @property
    def idle(self) -> bool:
        """Softmax cancels it, on a line too."""
        return True

    def carried(self, parts: Parts, by: Factor, element: Parts) -> Parts:
        """The shift moved as the weight is that it is added to."""
        moved = by.act(element, {self.weight: self.direction(parts[self.part])})
        return {self.part: self.measured(moved[self.weight])}

    def direction(self, shift: Tensor) -> Tensor:
        """The shift as it is added to the weight."""
        return shift

    def measured(self, weight: Tensor) -> Tensor:
        """The shift that is nearest to a weight."""
        return weight

    def act(self, element: Parts, weights: Parts) -> Parts:
        """`b + κ`, if there is such a weight."""
        if self.weight not in weights or not self.free:
            return weights
        return {**weights, self.weight: weights[self.weight] + self.direction(element[self.part])}

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """What leaves nothing of it."""
        if not self.free or self.weight not in weights:
            return self.identity((), next(iter(weights.values())).device)
        return {self.part: -self.measured(weights[self.weight])}

    def __str__(self) -> str:
        return f"R^{self.shape[-1]}"


@dataclass(frozen=True)
class KeyShift(Shift):
    """κ added to the key bias on the features that don't rotate, which softmax cancels.

    Attributes:
        features: Of a head.
        columns: Those that don't rotate.
    """

    features: int = 0
    columns: tuple[int, ...] = ()

    def direction(self, shift: Tensor) -> Tensor:
        """κ in its places, zero elsewhere."""
        if len(self.columns) == self.features:
            return shift
        spread = shift.new_zeros(*shift.shape[:-1], self.features)
        index = torch.tensor(self.columns, dtype=torch.int64, device=shift.device)
        return spread.index_copy(-1, index, shift)

    def measured(self, weight: Tensor) -> Tensor:
        """The features that don't rotate."""
        return weight if len(self.columns) == self.features else weight[..., list(self.columns)]

    def __str__(self) -> str:
        return f"R^{self.shape[-1]} (key bias)"


@dataclass(frozen=True)
class Tables(Shift):
    """The constants of every query head's table of relative position biases.

    A query sees the entries of one number only, and softmax cancels what is added to all of them. One constant is free
    for most tables; where special tokens have entries of their own, two.

    Attributes:
        numbers: For each entry the number of the constant that it shares.
    """

    numbers: tuple[int, ...] = ()

    def direction(self, shift: Tensor) -> Tensor:
        """Every constant at all of its entries."""
        return shift[..., list(self.numbers)]

    def measured(self, weight: Tensor) -> Tensor:
        """The mean of the entries of every number, `(..., constants)`."""
        member = torch.nn.functional.one_hot(torch.tensor(self.numbers, device=weight.device)).to(weight)
        return weight @ (member / member.sum(0))

    def unshifted(self, table: Tensor) -> Tensor:
        """A table less those means: what no shift changes."""
        return table - self.direction(self.measured(table))

    def __str__(self) -> str:
        return f"R^{self.shape[-2] * self.shape[-1]} (position biases)"


@dataclass(frozen=True)
class ValueShift(Shift):
    """v added to the value bias, which attention that sums to one hands on: `b_V += v`, `b_O -= Σ v O^T`."""

    @property
    def idle(self) -> bool:
        """Both biases change, and the output weights between them."""
        return False

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Both biases; the output bias by the output weights as they are now."""
        moved, v = super().act(element, weights), element[self.part]
        if "output_bias" in weights and self.free:
            back = torch.einsum("...gm,...gsdm->...d", v, weights["output"])
            moved = {**moved, "output_bias": weights["output_bias"] - back}
        return moved

    def __str__(self) -> str:
        return f"R^{self.shape[-1]} (value bias)"


@dataclass(frozen=True)
class RouterShift(Shift):
    """A vector added to all rows of a router, and a number to all of its biases, which softmax cancels."""

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """One for all experts."""
        return {self.part: ()}

    def carried(self, parts: Parts, by: Factor, element: Parts) -> Parts:
        """The same, whatever the order of experts."""
        return {self.part: parts[self.part]}

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Rows and biases."""
        if not self.shape[-1]:
            return weights
        shift, width = element[self.part], weights["router"].shape[-1]
        moved = {**weights, "router": weights["router"] + shift[..., None, :width]}
        if "router_bias" in weights:
            moved["router_bias"] = weights["router_bias"] + shift[..., width:]
        return moved

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """What makes the mean of the rows zero."""
        rows = [weights[name] for name in ("router",) if name in weights]
        rows += [weights[name].unsqueeze(-1) for name in ("router_bias",) if name in weights]
        if not self.shape[-1]:
            return self.identity((), next(iter(weights.values())).device)
        return {self.part: -torch.cat(rows, -1).mean(-2)[..., : self.shape[-1]]}

    def __str__(self) -> str:
        return f"R^{self.shape[-1]} (router)"
