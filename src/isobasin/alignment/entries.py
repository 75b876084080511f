"""What an alignment holds of every block: its group, the element that moves it, and how its match went."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from isobasin.symmetries import attention, feedforward, stream
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.stream import StreamElement, StreamGroup
from isobasin.text import finite


@dataclass(frozen=True)
class LayerStatistics:
    """How the match of one attention block went.

    Attributes:
        distance_before: Frobenius distance of all attention weights and biases, reference to model.
        distance_after: The same after the move.
        condition: Largest condition number of any head's U or W.
        iterations: Most steps that any head's stage 2 took.
        status: "exact", "converged", "max-iterations", "capped", or "composed" for an element that no solver found;
            of a canonical gauge, "canonical" or "not unique: " and what rounding decides.
        rounding: Relative error of the circuits that storing the moved weights will cause (predicted).
    """

    distance_before: float = math.nan
    distance_after: float = math.nan
    condition: float = math.nan
    iterations: int = 0
    status: str = "composed"
    rounding: float = math.nan


@dataclass(frozen=True)
class LayerAlignment:
    """The group element of one attention block.

    Attributes:
        layer: Index of the layer.
        group: The block's symmetry group.
        element: What moves the model's block, float64, without leading dimensions.
        statistics: How its match went.
    """

    layer: int
    group: AttentionGroup
    element: AttentionElement
    statistics: LayerStatistics

    def inverse(self) -> LayerAlignment:
        """The entry that takes the move back."""
        return self._bare(attention.inverse(self.group, self.element))

    def compose(self, first: LayerAlignment) -> LayerAlignment:
        """The entry that acts as `first` and then as this one."""
        return self._bare(attention.compose(self.group, self.element, first.element))

    def _bare(self, element: AttentionElement) -> LayerAlignment:
        """The block with another element, and no statistics of a match but its condition."""
        return replace(self, element=element, statistics=LayerStatistics(condition=condition_of(self.group, element)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        permutation = [int(i) for i in self.element.head_permutation()]
        return {"layer": self.layer, "head_permutation": permutation, **finite(asdict(self.statistics))}


@dataclass(frozen=True)
class FeedForwardStatistics:
    """How the match of one feed-forward block went.

    Attributes:
        distance_before: Frobenius distance of all its weights and biases, reference to model.
        distance_after: The same after the move.
        status: "exact" where that is rounding only, "optimal" otherwise, or "composed" for an element that was not
            matched; of a canonical gauge as in `LayerStatistics`.
    """

    distance_before: float = math.nan
    distance_after: float = math.nan
    status: str = "composed"


@dataclass(frozen=True)
class FeedForwardAlignment:
    """The group element of one feed-forward block.

    Attributes:
        layer: Index of the layer.
        group: The block's symmetry group.
        element: What moves the model's block, float64, without leading dimensions.
        statistics: How its match went.
    """

    layer: int
    group: FeedForwardGroup
    element: FeedForwardElement
    statistics: FeedForwardStatistics

    @property
    def moved_units(self) -> int:
        """How many units change their place, in the expert that they are in."""
        order = self.element.permutation
        return int((order != order.sort().values).sum())

    @property
    def moved_experts(self) -> int:
        """How many experts change their place."""
        order = self.element.experts
        return int((order != order.sort().values).sum())

    def inverse(self) -> FeedForwardAlignment:
        """The entry that takes the move back."""
        return replace(self, element=feedforward.inverse(self.group, self.element), statistics=FeedForwardStatistics())

    def compose(self, first: FeedForwardAlignment) -> FeedForwardAlignment:
        """The entry that acts as `first` and then as this one."""
        element = feedforward.compose(self.group, self.element, first.element)
        return replace(self, element=element, statistics=FeedForwardStatistics())

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; the permutation is in the file only."""
        units = {"layer": self.layer, "units": self.group.units, "moved_units": self.moved_units}
        if self.group.experts is not None:
            units |= {"experts": self.group.experts, "moved_experts": self.moved_experts}
        return {**units, **finite(asdict(self.statistics))}


@dataclass(frozen=True)
class ResidualStatistics:
    """How the match of a whole model went.

    Attributes:
        distance_before: Frobenius distance of all tensors along the residual stream with normalisations folded into
            their readers, reference to model.
        distance_after: The same after the move.
        start: Where the map of the stream that was kept began: "embeddings", "identity", "activations".
        sweeps: How often all factors were matched.
        small_gains: How many gains of the reference were too small to divide by, so that the moved model has others.
        unlike: How many tensors have other shapes in the two models, so that their common rows or nothing of them was
            matched.
    """

    distance_before: float = math.nan
    distance_after: float = math.nan
    start: str = "none"
    sweeps: int = 0
    small_gains: int = 0
    unlike: int = 0


@dataclass(frozen=True)
class ResidualAlignment:
    """The group element of the residual stream; it acts before those of the blocks.

    Attributes:
        group: The stream's symmetry group.
        element: What moves it, float64.
        keep_gains: Whether no normalisation was folded.
        statistics: How the match went.
    """

    group: StreamGroup
    element: StreamElement
    keep_gains: bool = False
    statistics: ResidualStatistics = ResidualStatistics()

    def inverse(self) -> ResidualAlignment:
        """The entry that takes the move back."""
        return replace(self, element=stream.inverse(self.group, self.element), statistics=ResidualStatistics())

    def compose(self, first: ResidualAlignment) -> ResidualAlignment:
        """The entry that acts as `first` and then as this one."""
        return replace(self, element=stream.compose(self.element, first.element), statistics=ResidualStatistics())

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; the map is in the file only."""
        facts = {"group": str(self.group), "width": self.group.width, "keep_gains": self.keep_gains}
        return {**facts, **finite(asdict(self.statistics))}


def condition_of(group: AttentionGroup, element: AttentionElement) -> float:
    """Largest condition number of any head's U or W; not finite where one has no inverse."""
    return float(group.condition(element.tensors()).max())
