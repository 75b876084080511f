"""Scales: what a unit's branches, or the gains of a latent, may be multiplied by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.rotation import by_heads


class Scale(StrEnum):
    """By what a branch of a unit may be scaled.

    * none: nothing but 1.
    * sign: ±1.
    * positive: R_{>0}.
    * signed: R*, all but 0.
    """

    none = "none"
    sign = "sign"
    positive = "positive"
    signed = "signed"

    @property
    def dimension(self) -> int:
        """1 where the scale can change continuously."""
        return int(self in (Scale.positive, Scale.signed))

    @property
    def signs(self) -> bool:
        """Whether -1 is among them."""
        return self in (Scale.sign, Scale.signed)

    def allowed(self, scale: Tensor) -> Tensor:
        """Which of some numbers are among them."""
        if self.dimension:
            return scale > 0 if self is Scale.positive else scale != 0
        return scale.abs() == 1 if self is Scale.sign else scale == 1

    def __str__(self) -> str:
        return {"none": "1", "sign": "{±1}", "positive": "R_{>0}", "signed": "R*"}[self.value]


@dataclass(frozen=True)
class Scaling(Factor):
    """Scales s of n units, or features: some weights are multiplied by s, others divided by s^m.

    Attributes:
        part: The name of s in elements.
        shape: `(n,)`, or `(e, n)` of e experts.
        kind: Which numbers s may be.
        multiplied: Weights by name, whose rows, or entries, are the units.
        divided: Likewise.
        power: m.
    """

    part: str
    shape: tuple[int, ...]
    kind: Scale
    multiplied: tuple[str, ...]
    divided: tuple[str, ...] = ()
    power: int = 1

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """One for every unit."""
        return {self.part: ("expert", "unit") if self.divided else ()}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """Ones."""
        return {self.part: torch.ones(*batch, *self.shape, dtype=torch.float64, device=device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """`ln |s|` uniform on ±½ ln(condition), signs fair coins."""
        uniform = torch.rand(2, *batch, *self.shape, generator=generator, dtype=torch.float64)
        size = ((uniform[0] - 0.5) * (math.log(condition) if self.kind.dimension else 0.0)).exp()
        return {self.part: torch.where(uniform[1] < 0.5, -size, size) if self.kind.signs else size}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """The product."""
        return {self.part: second[self.part] * first[self.part]}

    def inverse(self, element: Parts) -> Parts:
        """`1 / s`."""
        return {self.part: 1 / element[self.part]}

    def contains(self, element: Parts) -> bool:
        """Whether the kind has them."""
        return bool(self.kind.allowed(element[self.part]).all())

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Rows and entries times s, or divided by s^m."""
        scale, moved = element[self.part], dict(weights)
        if self.kind is Scale.none and bool((scale == 1).all()):
            return moved
        for names, by in ((self.multiplied, scale), (self.divided, scale**-self.power)):
            for name in names:
                if name in weights:
                    x = weights[name]
                    moved[name] = x * (by if x.ndim == by.ndim else by.unsqueeze(-1))
        return moved

    @property
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """L of `s = exp(l)`."""
        return {self.part: self.shape} if self.kind.dimension else {}

    def exponential(self, coordinates: Tensor) -> Tensor:
        """`exp(l)`."""
        return coordinates.exp()

    def __str__(self) -> str:
        return str(self.kind)


@dataclass(frozen=True)
class GainScaling(Scaling):
    """Scales of a latent's gains, which trade with the rows of what reads it.

    In the form that elements act on gains are multiplied into the readers, which hence don't change.

    Attributes:
        readers: What reads the latent, `(..., heads..., n, features)`.
    """

    readers: tuple[str, ...] = ()

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """Gains of 1."""
        return {self.part: 1 / weights[self.multiplied[0]]}

    def read(self, weights: Parts) -> Parts:
        """Gains multiplied into what reads the latent."""
        return self._by_gains(weights, lambda x, gain: x * gain)

    def stored(self, weights: Parts) -> Parts:
        """Gains taken out of it."""
        return self._by_gains(weights, lambda x, gain: x / gain)

    def _by_gains(self, weights: Parts, change: Callable[[Tensor, Tensor], Tensor]) -> Parts:
        gain = weights[self.multiplied[0]].unsqueeze(-1)
        there = [name for name in self.readers if name in weights]
        return {**weights, **{name: change(weights[name], by_heads(gain, weights[name])) for name in there}}

    def __str__(self) -> str:
        return f"(R*)^{self.shape[-1]}"
