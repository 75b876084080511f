"""The symmetry group of a feed-forward block: elements, group laws, action, and the block's function.

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

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
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
    def expert(self) -> FeedForwardGroup:
        """The group of one expert."""
        return replace(self, experts=None, expert_groups=1, shift=0)

    @property
    def batch(self) -> tuple[int, ...]:
        """The axis of experts, if there are any."""
        return () if self.experts is None else (self.experts,)

    @property
    def dimension(self) -> int:
        """Dimension of the continuous part; permutations and signs are discrete and add nothing."""
        scales = self.units * (self.up.dimension + (self.gate.dimension if self.gate else 0))
        return scales * (self.experts or 1) + self.shift

    def __str__(self) -> str:
        factors = [str(scale) for scale in (self.up, self.gate) if scale and scale is not Scale.none]
        scales = f"({' × '.join(factors)})^{self.units} ⋊ " if factors else ""
        unit = f"{scales}S_{self.units}"
        if self.experts is None:
            return unit
        order = f"S_{self.experts}"
        if self.expert_groups > 1:
            order = f"(S_{self.experts // self.expert_groups} wr S_{self.expert_groups})"
        router = f" × R^{self.shift} (router)" if self.shift else ""
        return f"({unit})^{self.experts} ⋊ {order}{router}"


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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field name."""
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> FeedForwardWeights:
        """The same weights with `function` applied to every tensor."""
        return replace(self, **{name: function(t) for name, t in self.tensors().items()})

    def expert(self, index: int) -> FeedForwardWeights:
        """One expert by itself, of a single block."""
        parts = {name: t[index] for name, t in self.tensors().items() if name not in _ROUTING}
        return FeedForwardWeights(**parts)


_ROUTING = ("router", "router_bias", "correction")


@dataclass(frozen=True)
class FeedForwardElement:
    """An element of `FeedForwardGroup`, or a batch of them (leading dimensions `...`).

    Attributes:
        permutation: π, which unit each new one was, `(..., f)` int64; of e experts `(..., e, f)`.
        up: s, `(..., f)` float64, likewise; ones where the group has no such scales.
        gate: r, `(..., f)` float64; likewise.
        experts: Which expert each new one was, `(..., e)` int64; empty for a block without.
        shift: What is added to every row of the router, `(..., shift)` float64.
    """

    permutation: Tensor
    up: Tensor
    gate: Tensor
    experts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name; `FeedForwardElement(**parts)` is the inverse."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> FeedForwardElement:
        """The same element on another device."""
        return FeedForwardElement(**{name: part.to(device) for name, part in self.tensors().items()})


def identity(
    group: FeedForwardGroup, batch: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> FeedForwardElement:
    """The identity element."""
    ones = torch.ones(*batch, *group.batch, group.units, dtype=torch.float64, device=device)
    return FeedForwardElement(
        permutation.identity((*batch, *group.batch), group.units, device),
        ones,
        ones.clone(),
        permutation.identity(batch, group.experts or 0, device),
        torch.zeros(*batch, group.shift, dtype=torch.float64, device=device),
    )


def contains(group: FeedForwardGroup, element: FeedForwardElement) -> bool:
    """Whether every scale is one that the group has, and experts stay in their groups."""

    def allowed(kind: Scale | None, scale: Tensor) -> Tensor:
        if kind is Scale.positive:
            return scale > 0
        return scale != 0 if kind is Scale.signed else scale.abs() == 1 if kind is Scale.sign else scale == 1

    scales = bool((allowed(group.up, element.up) & allowed(group.gate, element.gate)).all())
    # Where neighbours of a group come from must be one group.
    size = (group.experts or 0) // group.expert_groups
    origins = element.experts.unflatten(-1, (group.expert_groups, size)) // max(size, 1)
    together = bool((origins == origins[..., :1]).all())
    return scales and together and permutation.is_permutation(element.experts)


def sample(
    group: FeedForwardGroup,
    generator: torch.Generator,
    batch: tuple[int, ...] = (),
    condition: float = 10.0,
    shift: float = 1.0,
) -> FeedForwardElement:
    """Random elements.

    Args:
        group: The group.
        generator: CPU generator; the only source of randomness.
        batch: Leading dimensions.
        condition: Largest ratio of two scales: `ln |s|` is uniform on ±½ ln(condition), signs are fair coins.
        shift: Standard deviation of the router's shift, where it is free.
    """
    units = (*batch, *group.batch)

    def scales(kind: Scale | None) -> Tensor:
        uniform = torch.rand(2, *units, group.units, generator=generator, dtype=torch.float64)
        size = ((uniform[0] - 0.5) * (math.log(condition) if kind and kind.dimension else 0.0)).exp()
        return torch.where(uniform[1] < 0.5, -size, size) if kind in (Scale.sign, Scale.signed) else size

    found = FeedForwardElement(permutation.sample(units, group.units, generator), scales(group.up), scales(group.gate))
    count, size = group.expert_groups, (group.experts or 0) // group.expert_groups
    groups = permutation.sample(batch, count, generator) if group.experts else permutation.identity(batch, count)
    inner = permutation.sample((*batch, count), size, generator)
    added = shift * torch.randn(*batch, group.shift, generator=generator, dtype=torch.float64)
    return replace(found, experts=grouped(groups, inner), shift=added)


def grouped(groups: Tensor, inner: Tensor) -> Tensor:
    """The permutation of experts that permutes groups, `(..., g)`, and experts inside each, `(..., g, e/g)`."""
    return (groups.unsqueeze(-1) * inner.shape[-1] + inner).flatten(-2)


def compose(second: FeedForwardElement, first: FeedForwardElement) -> FeedForwardElement:
    """The element that acts as `first` and then `second`."""
    first = _reordered(first, second.experts)
    up, gate = (permutation.take(part, second.permutation) for part in (first.up, first.gate))
    return FeedForwardElement(
        permutation.take(first.permutation, second.permutation),
        second.up * up,
        second.gate * gate,
        first.experts,
        first.shift + second.shift,
    )


def inverse(element: FeedForwardElement) -> FeedForwardElement:
    """The inverse element."""
    experts = element.experts.argsort(-1)
    moved = _reordered(element, experts)
    back = moved.permutation.argsort(-1)
    up, gate = (1 / permutation.take(part, back) for part in (moved.up, moved.gate))
    return FeedForwardElement(back, up, gate, experts, -element.shift)


def _reordered(element: FeedForwardElement, experts: Tensor) -> FeedForwardElement:
    """Every part of an expert, taken along another permutation of experts."""
    if not experts.numel():
        return element
    parts = {name: permutation.take(part, experts) for name, part in element.tensors().items() if name != "shift"}
    return replace(element, **parts)


def act(group: FeedForwardGroup, element: FeedForwardElement, weights: FeedForwardWeights) -> FeedForwardWeights:
    """The moved weights; the block's function is the same.

    Args:
        group: The block's group.
        element: Of batch shape `(...)`.
        weights: Float64, of the same leading dimensions.

    Returns:
        New weights; the input is not changed.
    """
    if group.experts is not None:
        weights = _routed(group, element, weights)
    m, n = group.powers
    undone = 1 / (element.up**m * element.gate**n)
    scales = {"up": element.up, "up_bias": element.up, "gate": element.gate, "gate_bias": element.gate, "down": undone}

    def move(name: str, tensor: Tensor) -> Tensor:
        scale, moved = scales[name], permutation.take(tensor, element.permutation)
        return moved * (scale if moved.ndim == scale.ndim else scale.unsqueeze(-1))

    return replace(weights, **{name: move(name, t) for name, t in weights.tensors().items() if name in scales})


def _routed(group: FeedForwardGroup, element: FeedForwardElement, weights: FeedForwardWeights) -> FeedForwardWeights:
    """Experts in another order, and the router's rows shifted."""
    moved = weights.map(lambda t: permutation.take(t, element.experts))
    if not group.shift or moved.router is None:
        return moved
    width = moved.router.shape[-1]
    moved = replace(moved, router=moved.router + element.shift[..., None, :width])
    if moved.router_bias is None:
        return moved
    return replace(moved, router_bias=moved.router_bias + element.shift[..., width:])


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
