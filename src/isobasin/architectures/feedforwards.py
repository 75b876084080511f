"""The feed-forward blocks of a checkpoint, of one expert or of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.architectures.projection import Projection
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights


@dataclass(frozen=True)
class FeedForwardBlock(Block):
    """One feed-forward block of a checkpoint.

    Attributes:
        layer: Index of the layer, from 0.
        name: The module's path in the checkpoint, for messages.
        up: The projection that the activation reads, or in a gated block the one that it multiplies.
        gate: The projection that the activation reads, in a gated block; None otherwise.
        down: The projection into the residual stream.
        group: The block's symmetry group.
        activation: Its name in transformers; what verification of single blocks computes with.
    """

    up: Projection
    gate: Projection | None
    down: Projection
    group: FeedForwardGroup
    activation: str

    @property
    def projections(self) -> dict[str, Projection]:
        """The projections by their role."""
        gate = {} if self.gate is None else {"gate": self.gate}
        return {"up": self.up, **gate, "down": self.down}

    @property
    def writers(self) -> tuple[Projection, ...]:
        """The down projection."""
        return (self.down,)

    def read(self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> FeedForwardWeights:
        """The block's weights in float64, without leading dimensions."""
        parts: dict[str, Tensor] = {}
        for role, projection in self.projections.items():
            weight = tensors[projection.weight].to(device, torch.float64)
            parts[role] = projection.layout.read(weight)[0].mT
            if projection.bias is not None:
                bias = tensors[projection.bias].to(device, torch.float64)
                whole = projection is self.down
                parts[f"{role}_bias"] = bias if whole else projection.layout.read(bias, bias=True)[0]
        return FeedForwardWeights(**parts)

    def write(self, tensors: Mapping[str, Tensor], weights: FeedForwardWeights) -> dict[str, Tensor]:
        """New stored tensors of the block, with `tensors`' types and layout and `weights`' values."""
        return self._write(tensors, {name: t.mT if t.ndim == 2 else t for name, t in weights.tensors().items()})


@dataclass(frozen=True)
class ExpertsBlock(Block):
    """One block of experts and their router; experts that all tokens share are a `FeedForwardBlock` of their own.

    The projections of a role are those of the experts in turn, each stored by itself, or one that holds all of them
    (a layout with an axis `expert`).

    Attributes:
        layer: Index of the layer.
        name: The module's path in the checkpoint, for messages.
        router: The projection whose features are the experts' scores.
        up, down: Of the experts, as in `FeedForwardBlock`.
        gate: Likewise; empty without.
        group: The block's symmetry group.
        activation: As in `FeedForwardBlock`.
        correction: What is added to scores where experts are chosen; None without.
    """

    router: Projection
    up: tuple[Projection, ...]
    gate: tuple[Projection, ...]
    down: tuple[Projection, ...]
    group: FeedForwardGroup
    activation: str
    correction: Projection | None = None

    @property
    def _roles(self) -> dict[str, tuple[Projection, ...]]:
        roles = {"up": self.up, "gate": self.gate, "down": self.down}
        return {role: projections for role, projections in roles.items() if projections}

    @property
    def projections(self) -> dict[str, Projection]:
        """The projections by their role and, but for the router's, their place among those of that role."""
        parts = {f"{role}.{i}": part for role, parts in self._roles.items() for i, part in enumerate(parts)}
        return {"router": self.router, **parts}

    @property
    def biases(self) -> tuple[str, ...]:
        """The roles that have a bias."""
        roles = {"router": (self.router,), **self._roles}
        return tuple(role for role, projections in roles.items() if projections[0].bias is not None)

    @property
    def others(self) -> dict[str, Projection]:
        """The correction, if there is one."""
        return {} if self.correction is None else {"correction": self.correction}

    @property
    def deciding(self) -> frozenset[str]:
        """The correction."""
        return frozenset(other.weight for other in self.others.values())

    @property
    def writers(self) -> tuple[Projection, ...]:
        """The down projections."""
        return self.down

    def read(self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> FeedForwardWeights:
        """The block's weights in float64, without leading dimensions but for the experts'."""

        def double(name: str) -> Tensor:
            return tensors[name].to(device, torch.float64)

        def bias(name: str, projection: Projection) -> Tensor:
            whole = projection in self.writers
            stored = double(name)
            return stored.reshape(-1, self.width) if whole else projection.layout.read(stored, bias=True)

        parts = {"router": self.router.layout.read(double(self.router.weight))[0].mT}
        if self.router.bias is not None:
            parts["router_bias"] = double(self.router.bias)
        for role, projections in self._roles.items():
            parts[role] = torch.cat([part.layout.read(double(part.weight)) for part in projections]).mT
            if biases := [bias(part.bias, part) for part in projections if part.bias is not None]:
                parts[f"{role}_bias"] = torch.cat(biases)
        others = {role: other.layout.read(double(other.weight), bias=True)[0] for role, other in self.others.items()}
        return FeedForwardWeights(**parts, **others)

    def write(self, tensors: Mapping[str, Tensor], weights: FeedForwardWeights) -> dict[str, Tensor]:
        """New stored tensors of the block, with `tensors`' types and layout and `weights`' values."""
        found = weights.tensors()
        parts = {name: t.mT if name == "router" else t for name, t in found.items() if name in _ROUTING}
        for role, projections in self._roles.items():
            sizes = [dict(part.layout.sizes).get("expert", 1) for part in projections]
            for name in (role, f"{role}_bias"):
                if name in found:
                    ending = name.removeprefix(role)
                    each = (found[name].mT if name == role else found[name]).split(sizes)
                    parts |= {f"{role}.{i}{ending}": part for i, part in enumerate(each)}
        return self._write(tensors, parts)


_ROUTING = ("router", "router_bias", "correction")

FeedForward = FeedForwardBlock | ExpertsBlock
"""A feed-forward block of either kind."""
