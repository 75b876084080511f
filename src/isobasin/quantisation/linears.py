"""The weights that are rounded, as tools do it: projections of blocks, no embedding, normalisation, router or head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.architectures.projection import Layout
from isobasin.errors import ArchitectureError, TensorError, warn
from isobasin.model import Blocks
from isobasin.quantisation.quantiser import Rounds

_ROUTER = "router"


@dataclass(frozen=True)
class Linear:
    """A stored weight that is rounded, perhaps that of several projections, or of experts.

    Attributes:
        weight: The tensor.
        bias: The tensor of its biases; None without.
        layout: How it is stored, whichever of its projections that is of.
        writes: Whether its outputs are the stream's coordinates; its inputs are otherwise.
    """

    weight: str
    bias: str | None
    layout: Layout
    writes: bool

    def matrix(self, stored: Tensor) -> Tensor:
        """The stored weight as a matrix, outputs first, or one of every expert."""
        source, target = self.layout.matrix(self.writes)
        return rearrange(stored, f"{source} -> {target}", **dict(self.layout.sizes))

    def stored(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        source, target = self.layout.matrix(self.writes)
        return rearrange(matrix, f"{target} -> {source}", **dict(self.layout.sizes))

    def affine(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix with its biases as a last column, zeros where there are none."""
        matrix = self.matrix(tensors[self.weight])
        bias = matrix.new_zeros(matrix.shape[:-1]) if self.bias is None else tensors[self.bias]
        return torch.cat([matrix, bias.reshape(*matrix.shape[:-1], 1)], -1)


def linears(model: Blocks) -> tuple[Linear, ...]:
    """All weights of a model that are rounded, each once; a warning says where feed-forward blocks aren't known."""
    try:
        blocks = model.blocks()
    except (ArchitectureError, TensorError) as error:
        warn(f"{error}: attention alone is rounded")
        blocks = model.blocks(feedforward=False)
    found: dict[str, Linear] = {}
    for block in blocks:
        found |= {linear.weight: linear for linear in _of(block)}
    return tuple(found.values())


def _of(block: Block) -> list[Linear]:
    return [
        Linear(projection.weight, projection.bias, projection.layout, projection in block.writers)
        for role, projection in block.projections.items()
        if role != _ROUTER
    ]


def rounded(tensors: Mapping[str, Tensor], weights: tuple[Linear, ...], rounds: Rounds) -> dict[str, Tensor]:
    """A model's tensors, those of some weights rounded."""
    new = {one.weight: one.stored(rounds(one.matrix(tensors[one.weight]))) for one in weights}
    return {**tensors, **new}
