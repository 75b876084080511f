"""What an alignment holds of every block: one move, whatever kind of block it is, by one table of kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from isobasin.architectures.blocks import Block, labels
from isobasin.plain import Plain, finite
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.stream import StreamElement, StreamGroup

ATTENTION, FEEDFORWARD, STREAM = "attention", "feedforward", "stream"

Found = TypeVar("Found", bound=Block)
Group = TypeVar("Group", bound="AttentionGroup | FeedForwardGroup | StreamGroup")
Element = TypeVar("Element", bound="AttentionElement | FeedForwardElement | StreamElement")


@dataclass(frozen=True)
class Statistics:
    """How the match of one block went; each kind of block has some of these figures (`Kind.figures`).

    Attributes:
        distance_before: Frobenius distance of all its weights and biases, reference to model; of the stream, of all
            tensors along it with normalisations folded into their readers.
        distance_after: The same after the move.
        condition: Largest condition number of any head's U or W.
        iterations: Most steps that any head's stage 2 took.
        status: "exact" where the distance after is rounding only; of heads otherwise "converged", "max-iterations" or
            "capped", of units "optimal"; "composed" for an element that no solver found; of a canonical gauge,
            "canonical" or "not unique: " and what rounding decides, in which tensors.
        rounding: Relative error of the circuits that storing the moved weights will cause (predicted).
        start: Where the map of the stream that was kept began: "embeddings", "identity", "activations".
        sweeps: How often all factors were matched.
        small_gains: How many gains of the reference were too small to divide by, so that the moved model has others.
        unlike: How many tensors have other shapes in the two models, so that their common rows or nothing of them was
            matched.
    """

    distance_before: float = math.nan
    distance_after: float = math.nan
    condition: float = math.nan
    iterations: int = 0
    status: str = "composed"
    rounding: float = math.nan
    start: str = "none"
    sweeps: int = 0
    small_gains: int = 0
    unlike: int = 0


@dataclass(frozen=True)
class Move(Plain, Generic[Group, Element]):
    """The group element of one block, float64 and without leading dimensions.

    Attributes:
        block: Its kind, and unless it is the stream its layer: "attention.0", "feedforward.3.1" for the second one of
            layer 3, "stream". The stream moves before all others.
        group: The block's symmetry group.
        element: What moves the model's block.
        statistics: How its match went.
    """

    block: str
    group: Group
    element: Element
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def _kind(self) -> Kind:
        """What is known of blocks of its kind."""
        return kind_of(self.block)

    @property
    def _laws(self) -> Any:
        """The group, of whatever kind: its own element is one of it."""
        return self.group

    @property
    def layer(self) -> int:
        """Index of the block's layer."""
        return int(self.block.split(".")[1])

    def inverse(self) -> Move[Group, Element]:
        """The move that takes this one back."""
        return self.having(self._laws.inverse(self.element))

    def compose(self, first: Move[Any, Any]) -> Move[Group, Element]:
        """The move that acts as `first` and then as this one."""
        return self.having(self._laws.compose(self.element, first.element))

    def having(self, element: Any) -> Move[Group, Element]:
        """The block's move by another element, with no statistics of a match but its condition."""
        return unmatched(self.block, self.group, element)

    def act(self, weights: Any) -> Any:
        """A block's weights after the move, on the device that they are on."""
        device = next(iter(weights.tensors().values())).device
        return self._laws.act(self.element.to(device), weights)

    def figures(self) -> dict[str, Any]:
        """Those statistics that blocks of its kind have, for JSON: null for what is not a finite number."""
        return finite({name: getattr(self.statistics, name) for name in self._kind.figures})

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; maps and permutations of units are in the file only."""
        return {**self._kind.facts(self), **self.figures()}


@dataclass(frozen=True)
class Kind:
    """All that differs between blocks of different kinds.

    Attributes:
        group: The class of its groups.
        element: An element from its tensors by name.
        figures: Which statistics its matches have.
        facts: What is said of a move beside these.
        condition: Largest condition number of an element's maps, not finite where one has no inverse; None where that
            isn't told.
    """

    group: type[Any]
    element: Callable[[dict[str, Tensor]], Any]
    figures: tuple[str, ...]
    facts: Callable[[Move[Any, Any]], dict[str, Any]]
    condition: Callable[[Any, Any], float] | None = None


def condition_of(group: AttentionGroup, element: AttentionElement) -> float:
    """Largest condition number of any head's U or W; not finite where one has no inverse."""
    return float(group.condition(element.tensors()).max())


def displaced(order: Tensor) -> int:
    """How many units, or experts, a permutation gives another place."""
    return int((order != order.sort().values).sum())


def _heads(move: Move[AttentionGroup, AttentionElement]) -> dict[str, Any]:
    return {"layer": move.layer, "head_permutation": [int(i) for i in move.element.head_permutation()]}


def _units(move: Move[FeedForwardGroup, FeedForwardElement]) -> dict[str, Any]:
    group, element = move.group, move.element
    facts = {"layer": move.layer, "units": group.units, "moved_units": displaced(element.permutation)}
    experts = {"experts": group.experts, "moved_experts": displaced(element.experts)}
    return facts if group.experts is None else facts | experts


def _basis(move: Move[StreamGroup, StreamElement]) -> dict[str, Any]:
    return {"group": str(move.group), "width": move.group.width, "keep_gains": move.group.keep_gains}


_DISTANCES = ("distance_before", "distance_after")
KINDS = {
    ATTENTION: Kind(
        AttentionGroup,
        AttentionElement,
        (*_DISTANCES, "condition", "iterations", "status", "rounding"),
        _heads,
        condition_of,
    ),
    FEEDFORWARD: Kind(FeedForwardGroup, FeedForwardElement, (*_DISTANCES, "status"), _units),
    STREAM: Kind(
        StreamGroup,
        lambda parts: StreamElement(**parts),
        (*_DISTANCES, "start", "sweeps", "small_gains", "unlike"),
        _basis,
    ),
}


def kind_of(block: str) -> Kind:
    """What is known of blocks of the kind of one that moves call so."""
    return KINDS[block.partition(".")[0]]


def unmatched(block: str, group: Group, element: Element, status: str = "composed") -> Move[Group, Element]:
    """The move by an element that was found without another model, with its condition alone."""
    condition = kind_of(block).condition
    figures = Statistics(status=status, condition=math.nan if condition is None else condition(group, element))
    return Move(block, group, element, figures)


AttentionMove = Move[AttentionGroup, AttentionElement]
FeedForwardMove = Move[FeedForwardGroup, FeedForwardElement]
StreamMove = Move[StreamGroup, StreamElement]
AnyMove = Move[Any, Any]


def block_names(kind: str, layers: Iterable[int]) -> list[str]:
    """What moves of blocks of a kind call these, by the layers that they are in."""
    return [f"{kind}.{label}" for label in labels(layers)]


def named(kind: str, blocks: Sequence[Found]) -> list[tuple[str, Found]]:
    """Blocks of a kind with what moves call them."""
    return list(zip(block_names(kind, [block.layer for block in blocks]), blocks, strict=True))
