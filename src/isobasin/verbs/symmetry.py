"""The symmetry group of a whole model, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

from isobasin.architectures.blocks import Block
from isobasin.model import Source, open_model
from isobasin.plain import Plain, plain
from isobasin.symmetries.feedforward import FeedForwardGroup
from isobasin.symmetries.groups import AttentionGroup
from isobasin.verification import known_feedforwards

Group = TypeVar("Group", AttentionGroup, FeedForwardGroup)


@dataclass(frozen=True)
class BlockSymmetry(Plain, Generic[Group]):
    """The group of one block.

    Attributes:
        layer: Index of the layer.
        group: The group.
        parameters: Number of weights and biases that it acts on.
    """

    layer: int
    group: Group
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**super().to_json(), "dimension": self.group.dimension}


class LayerSymmetry(BlockSymmetry[AttentionGroup]):
    """The group of one attention block."""


class FeedForwardSymmetry(BlockSymmetry[FeedForwardGroup]):
    """The group of one feed-forward block."""


@dataclass(frozen=True)
class Symmetry(Plain):
    """The symmetry of a model's blocks.

    Attributes:
        layers: Every attention block.
        parameters: Stored values of the whole model.
        feedforward: Every feed-forward block; none where they are not known.
        tied: Constants of tables of position biases that several blocks count, beyond the first.
    """

    layers: tuple[LayerSymmetry, ...]
    parameters: int
    feedforward: tuple[FeedForwardSymmetry, ...] = ()
    tied: int = 0

    @property
    def dimension(self) -> int:
        """Directions in which attention weights can move without changing the function."""
        return sum(layer.group.dimension for layer in self.layers) - self.tied

    @property
    def feedforward_dimension(self) -> int:
        """The same for the weights of feed-forward blocks; their permutations are discrete and add nothing."""
        return sum(layer.group.dimension for layer in self.feedforward)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; "dimension" is that of attention."""
        units = {"layers": self.feedforward, "dimension": self.feedforward_dimension}
        return plain(
            {"layers": self.layers, "dimension": self.dimension, "parameters": self.parameters, "feedforward": units}
        )


def symmetry(model: Source, *, allow_pickle: bool = False) -> Symmetry:
    """The group of every block and its dimension (attention: arXiv 2606.17830, Theorems 2.1, 4.1, 4.2).

    Only headers are read, and of a model on the hub only they and the configuration are fetched.

    Args:
        model: Folder, hub id, or transformers model.
        allow_pickle: Load pickled weights, with `weights_only`.
    """
    with open_model(model, allow_pickle=allow_pickle, headers=True) as opened:
        layers = tuple(
            LayerSymmetry(block.layer, block.group, _size(block)) for block in opened.specification.attention
        )
        feedforward = tuple(
            FeedForwardSymmetry(block.layer, block.group, _size(block)) for block in known_feedforwards(opened)
        )
        tied = sum(
            layers[index].group.heads * layers[index].group.table_shifts
            for _, *others in opened.specification.ties
            for index in others
        )
        return Symmetry(layers, opened.parameters(), feedforward, tied)


def _size(block: Block) -> int:
    """Number of weights and biases of a block."""
    return sum(prod(shape) for shape in block.shapes().values())
