"""The symmetry group of a feed-forward block: elements, group laws, action, and the block's function.

With units (hidden features) i, rows of `up`, `gate` and `down` of width d, and an activation φ, the block computes

    plain:   Σ_i φ(x·up_i + b_i) down_i + c
    gated:   Σ_i φ(x·gate_i + a_i) (x·up_i + b_i) down_i + c

An element permutes units and then scales their branches by s (up) and r (gate), which `down` undoes:

    up_i <- s_i up_π(i),   gate_i <- r_i gate_π(i),   down_i <- down_π(i) / (s_i^m r_i^n),

biases like their rows, c untouched. A branch that φ reads may be scaled by s > 0 where `φ(s z) = s^n φ(z)`, by ±1
where φ is odd, and not at all otherwise; the branch that is only multiplied by it may be scaled by any s ≠ 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import torch
from torch import Tensor

from isobasin.symmetries import permutation


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

    def __str__(self) -> str:
        return {"none": "1", "sign": "{±1}", "positive": "R_{>0}", "signed": "R*"}[self.value]


@dataclass(frozen=True)
class FeedForwardGroup:
    """The symmetry group of one feed-forward block: scales of every unit, and all permutations of units.

    Attributes:
        units: Number of hidden units, f.
        up: Scales of the up branch: that which the activation reads, or in a gated block that which it multiplies.
        gate: Scales of the gate branch, which the activation reads; None for a block without gate.
        degree: n of `φ(s z) = s^n φ(z)`; 1 where the activation isn't homogeneous.
    """

    units: int
    up: Scale = Scale.none
    gate: Scale | None = None
    degree: int = 1

    def __post_init__(self) -> None:
        if self.units < 1 or self.degree < 1:
            raise ValueError(f"units and degree must be at least 1: {self.units}, {self.degree}")
        for scale, power in zip((self.up, self.gate), self.powers, strict=True):
            if scale in (Scale.sign, Scale.signed) and power != 1:
                raise ValueError(f"signs need a branch of degree 1, this one has degree {power}")

    @property
    def powers(self) -> tuple[int, int]:
        """`(m, n)`: down is divided by `s^m r^n`."""
        return (self.degree, 0) if self.gate is None else (1, self.degree)

    @property
    def scaled(self) -> bool:
        """Whether anything but the order of units is free."""
        return self.up is not Scale.none or self.gate not in (None, Scale.none)

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part; permutations and signs are discrete and add nothing."""
        return self.units * (self.up.dimension + (self.gate.dimension if self.gate else 0))

    def __str__(self) -> str:
        factors = [str(scale) for scale in (self.up, self.gate) if scale and scale is not Scale.none]
        scales = f"({' × '.join(factors)})^{self.units} ⋊ " if factors else ""
        return f"{scales}S_{self.units}"


@dataclass(frozen=True)
class FeedForwardWeights:
    """The weights of one feed-forward block, or of a stack of equal blocks (leading dimensions `...`).

    With f units and model width d:

    Attributes:
        up: `(..., f, d)`.
        down: `(..., f, d)`; a unit's output is its activation times its row.
        gate: `(..., f, d)`, or None.
        up_bias: `(..., f)`, or None.
        gate_bias: `(..., f)`, or None.
        down_bias: `(..., d)`, or None.
    """

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field name."""
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> FeedForwardWeights:
        """The same weights with `function` applied to every tensor."""
        return replace(self, **{name: function(t) for name, t in self.tensors().items()})


@dataclass(frozen=True)
class FeedForwardElement:
    """An element of `FeedForwardGroup`, or a batch of them (leading dimensions `...`).

    Attributes:
        permutation: π, which unit each new one was, `(..., f)` int64.
        up: s, `(..., f)` float64; ones where the group has no such scales.
        gate: r, `(..., f)` float64; likewise.
    """

    permutation: Tensor
    up: Tensor
    gate: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name; `FeedForwardElement(**parts)` is the inverse."""
        return {"permutation": self.permutation, "up": self.up, "gate": self.gate}

    def to(self, device: torch.device | str) -> FeedForwardElement:
        """The same element on another device."""
        return FeedForwardElement(**{name: part.to(device) for name, part in self.tensors().items()})


def identity(
    group: FeedForwardGroup, batch: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> FeedForwardElement:
    """The identity element."""
    ones = torch.ones(*batch, group.units, dtype=torch.float64, device=device)
    return FeedForwardElement(permutation.identity(batch, group.units, device), ones, ones.clone())


def contains(group: FeedForwardGroup, element: FeedForwardElement) -> bool:
    """Whether every scale is one that the group has."""

    def allowed(kind: Scale | None, scale: Tensor) -> Tensor:
        if kind is Scale.positive:
            return scale > 0
        return scale != 0 if kind is Scale.signed else scale.abs() == 1 if kind is Scale.sign else scale == 1

    return bool((allowed(group.up, element.up) & allowed(group.gate, element.gate)).all())


def sample(
    group: FeedForwardGroup, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0
) -> FeedForwardElement:
    """Random elements.

    Args:
        group: The group.
        generator: CPU generator; the only source of randomness.
        batch: Leading dimensions.
        condition: Largest ratio of two scales: `ln |s|` is uniform on ±½ ln(condition), signs are fair coins.
    """

    def scales(kind: Scale | None) -> Tensor:
        uniform = torch.rand(2, *batch, group.units, generator=generator, dtype=torch.float64)
        size = ((uniform[0] - 0.5) * (math.log(condition) if kind and kind.dimension else 0.0)).exp()
        return torch.where(uniform[1] < 0.5, -size, size) if kind in (Scale.sign, Scale.signed) else size

    order = permutation.sample(batch, group.units, generator)
    return FeedForwardElement(order, scales(group.up), scales(group.gate))


def compose(second: FeedForwardElement, first: FeedForwardElement) -> FeedForwardElement:
    """The element that acts as `first` and then `second`."""
    order = second.permutation
    moved = {name: permutation.take(part, order) for name, part in first.tensors().items()}
    return FeedForwardElement(moved["permutation"], second.up * moved["up"], second.gate * moved["gate"])


def inverse(element: FeedForwardElement) -> FeedForwardElement:
    """The inverse element."""
    back = element.permutation.argsort(-1)
    return FeedForwardElement(back, 1 / permutation.take(element.up, back), 1 / permutation.take(element.gate, back))


def act(group: FeedForwardGroup, element: FeedForwardElement, weights: FeedForwardWeights) -> FeedForwardWeights:
    """The moved weights; the block's function is the same.

    Args:
        group: The block's group.
        element: Of batch shape `(...)`.
        weights: Float64, of the same leading dimensions.

    Returns:
        New weights; the input is not changed.
    """
    m, n = group.powers
    undone = 1 / (element.up**m * element.gate**n)
    scales = {"up": element.up, "up_bias": element.up, "gate": element.gate, "gate_bias": element.gate, "down": undone}

    def move(name: str, tensor: Tensor) -> Tensor:
        scale, moved = scales[name], permutation.take(tensor, element.permutation)
        return moved * (scale if moved.ndim == scale.ndim else scale.unsqueeze(-1))

    return replace(weights, **{name: move(name, t) for name, t in weights.tensors().items() if name in scales})


def feed_forward(weights: FeedForwardWeights, activation: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """The block's function, written plainly: what every element of the group leaves unchanged.

    Args:
        weights: One block, without leading dimensions.
        activation: φ.
        hidden: `(..., d)`.

    Returns:
        `(..., d)`.
    """

    def project(rows: Tensor, bias: Tensor | None) -> Tensor:
        return hidden @ rows.mT if bias is None else hidden @ rows.mT + bias

    up, gate = project(weights.up, weights.up_bias), weights.gate
    units = activation(up) if gate is None else activation(project(gate, weights.gate_bias)) * up
    out = units @ weights.down
    return out if weights.down_bias is None else out + weights.down_bias
