"""The feed-forward blocks of a checkpoint, of one expert or of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.architectures.projection import Projection
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights

# What experts have in common: everything of a block that is one.
_ROUTING = ("router", "router_bias", "correction")


class _Units(Block):
    """A block of units, or of experts of some."""

    def _shared(self, role: str) -> bool:
        return role in _ROUTING or "router" not in self.projections

    def read(
        self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64
    ) -> FeedForwardWeights:
        """The block's weights, without leading dimensions but for the experts'."""
        parts = self._parts(tensors, device, dtype)
        found = {role: x if x.ndim == 2 else x.mT for role, x in parts.items()}
        return FeedForwardWeights(**{role: x[0] if self._shared(role) else x for role, x in found.items()})

    def write(self, tensors: Mapping[str, Tensor], weights: FeedForwardWeights) -> dict[str, Tensor]:
        """New stored tensors of the block, with `tensors`' layout and `weights`' values and type."""
        parts = {role: x[None] if self._shared(role) else x for role, x in weights.tensors().items()}
        return self._write(tensors, {role: x if x.ndim == 2 else x.mT for role, x in parts.items()})


@dataclass(frozen=True)
class FeedForwardBlock(_Units):
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


@dataclass(frozen=True)
class ExpertsBlock(_Units):
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
    def projections(self) -> dict[str, Projection]:
        """The projections by their role and, but for the router's, their place among those of that role."""
        roles = {"up": self.up, "gate": self.gate, "down": self.down}
        parts = {f"{role}.{i}": part for role, parts in roles.items() for i, part in enumerate(parts)}
        return {"router": self.router, **parts}

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


FeedForward = FeedForwardBlock | ExpertsBlock
"""A feed-forward block of either kind."""
