"""The symmetry group of a feed-forward block, its elements, and the block's function.

With units (hidden features) i, rows of `up`, `gate` and `down` of width d, and an activation φ, the block computes

    plain:   Σ_i φ(x·up_i + b_i) down_i + c
    gated:   Σ_i φ(x·gate_i + a_i) (x·up_i + b_i) down_i + c

An element permutes units and then scales their branches by s (up) and r (gate), which `down` undoes:

    up_i <- s_i up_π(i),   gate_i <- r_i gate_π(i),   down_i <- down_π(i) / (s_i^m r_i^n),

biases like their rows, c untouched. A branch that φ reads may be scaled by s > 0 where `φ(s z) = s^n φ(z)`, by ±1
where φ is odd, and not at all otherwise; the branch that is only multiplied by it may be scaled by any s ≠ 0.

A block of experts is several such blocks E_e and a router, which weighs by its scores those that it chooses:

    Σ_e w_e(x·router + b) E_e(x)

An element moves each expert in its own group and permutes experts with their rows of the router. Scores that softmax
makes, before or after the choice, don't see what is added to all of them: all rows may be shifted by one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.symmetries.factor import Factor
from isobasin.symmetries.permutation import Experts, Units
from isobasin.symmetries.product import Element, Product
from isobasin.symmetries.scale import Scale as Scale, Scaling
from isobasin.symmetries.shift import RouterShift
from isobasin.symmetries.weights import Weights

_ROUTING = ("router", "router_bias", "correction")


@dataclass(frozen=True)
class FeedForwardWeights(Weights):
    """The weights of one feed-forward block, or of a stack of equal blocks (leading dimensions `...`).

    With f units and model width d:

    Attributes:
        up: `(..., f, d)`.
        down: `(..., f, d)`; a unit's output is its activation times its row.
        gate: `(..., f, d)`, or None.
        up_bias: `(..., f)`, or None.
        gate_bias: `(..., f)`, or None.
        down_bias: `(..., d)`, or None.
        router: Of e experts, `(..., e, d)`; all of the above then have the axis e before their last or last two. None
            for a block that is no choice of experts.
        router_bias: `(..., e)`, or None.
        correction: What is added to the experts' scores where they are chosen, and not where they weigh, `(..., e)`; or
            None.
    """

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None
    router: Tensor | None = None
    router_bias: Tensor | None = None
    correction: Tensor | None = None

    def expert(self, index: int) -> FeedForwardWeights:
        """One expert by itself, of a single block."""
        parts = {name: t[index] for name, t in self.tensors().items() if name not in _ROUTING}
        return FeedForwardWeights(**parts)


class FeedForwardElement(Element):
    """An element of `FeedForwardGroup`, or a batch of them (leading dimensions `...`).

    Its parts are `permutation`, π, which unit each new one was, `(..., f)` int64, of e experts `(..., e, f)`; `up` and
    `gate`, s and r, of the same shapes, float64, ones where the group has no such scales; `experts`, which expert each
    new one was, `(..., e)` int64, empty for a block without; and `shift`, what is added to every row of the router.
    """

    @property
    def permutation(self) -> Tensor:
        """π."""
        return self.parts["permutation"]

    @property
    def experts(self) -> Tensor:
        """Which expert each new one was."""
        return self.parts["experts"]

    @property
    def shift(self) -> Tensor:
        """What is added to the router's rows."""
        return self.parts["shift"]


@dataclass(frozen=True)
class FeedForwardGroup(Product[FeedForwardElement, FeedForwardWeights]):
    """The symmetry group of one feed-forward block: scales of every unit, and all permutations of units.

    Attributes:
        units: Number of hidden units, f.
        up: Scales of the up branch: that which the activation reads, or in a gated block that which it multiplies.
        gate: Scales of the gate branch, which the activation reads; None for a block without gate.
        degree: n of `φ(s z) = s^n φ(z)`; 1 where the activation isn't homogeneous.
        experts: Number of experts, each of these units; None for a block that is one.
        expert_groups: Groups of neighbouring experts of which a token's router first chooses some: experts stay with
            those of their group.
        shift: Entries of the vector by which all rows of the router may be shifted, its biases last; 0 where none may.
    """

    units: int
    up: Scale = Scale.none
    gate: Scale | None = None
    degree: int = 1
    experts: int | None = None
    expert_groups: int = 1
    shift: int = 0

    element = FeedForwardElement

    def __post_init__(self) -> None:
        if self.experts is None and (self.shift or self.expert_groups != 1):
            raise ValueError("only experts have a router and groups")
        if self.experts is not None and (self.experts < 1 or self.experts % self.expert_groups):
            raise ValueError(f"{self.experts} experts can't be {self.expert_groups} equal groups")
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
        """Whether anything but the order of units and experts is free."""
        return self.up is not Scale.none or self.gate not in (None, Scale.none) or self.shift > 0

    @property
    def shifted(self) -> tuple[str, ...]:
        """The weights that are shifted, however large they are themselves: rounding is that of what they become."""
        return ("router", "router_bias") if self.shift else ()

    @property
    def expert(self) -> FeedForwardGroup:
        """The group of one expert."""
        return replace(self, experts=None, expert_groups=1, shift=0)

    @property
    def batch(self) -> tuple[int, ...]:
        """The axis of experts, if there are any."""
        return () if self.experts is None else (self.experts,)

    def build(self) -> tuple[Factor, ...]:
        """Experts and what their router lets pass first, then the units of each, then their branches."""
        units = (*self.batch, self.units)
        m, n = self.powers
        scales = ("up", units, self.up, m), ("gate", units, self.gate or Scale.none, n)
        return (
            Experts(self.experts or 0, self.expert_groups),
            RouterShift("shift", "router", (self.shift,), self.shift > 0),
            Units(self.units, self.batch),
            *(Scaling(x, shape, kind, (x, f"{x}_bias"), ("down",), power) for x, shape, kind, power in scales),
        )

    @property
    def drawn(self) -> Sequence[Factor]:
        """Units first."""
        return self.factors[2:] + self.factors[:2]

    def __str__(self) -> str:
        factors = [str(scale) for scale in (self.up, self.gate) if scale and scale is not Scale.none]
        scales = f"({' × '.join(factors)})^{self.units} ⋊ " if factors else ""
        unit = f"{scales}S_{self.units}"
        if self.experts is None:
            return unit
        order, shift = self.factors[:2]
        return f"({unit})^{self.experts} ⋊ {order}" + (f" × {shift}" if self.shift else "")


def feed_forward(
    weights: FeedForwardWeights,
    activation: Callable[[Tensor], Tensor],
    hidden: Tensor,
    multiplied: Callable[[Tensor], Tensor] | None = None,
    scores: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The block's function, written plainly: what every element of the group leaves unchanged.

    Of experts, all are added up by their scores: which of them a token's router chooses follows from the same scores,
    and a sum over all sees each of them, without steps.

    Args:
        weights: One block, without leading dimensions.
        activation: φ.
        hidden: `(..., d)`.
        multiplied: What is done to the branch that φ multiplies, if anything.
        scores: Of experts, from what their router's rows return, experts last; softmax by default.

    Returns:
        `(..., d)`.
    """
    if weights.router is not None:
        logits = _affine(hidden, weights.router, weights.router_bias)
        weigh = logits.softmax(-1) if scores is None else scores(logits)
        weigh = weigh if weights.correction is None else weigh + weights.correction
        each = (weights.expert(index) for index in range(len(weights.router)))
        found = [feed_forward(expert, activation, hidden, multiplied) for expert in each]
        return torch.einsum("...e,e...d->...d", weigh, torch.stack(found))
    up, gate = _affine(hidden, weights.up, weights.up_bias), weights.gate
    if gate is None:
        units = activation(up)
    else:
        units = activation(_affine(hidden, gate, weights.gate_bias)) * (up if multiplied is None else multiplied(up))
    out = units @ weights.down
    return out if weights.down_bias is None else out + weights.down_bias


def _affine(hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    return hidden @ rows.mT if bias is None else hidden @ rows.mT + bias
