"""The directions in which a stated group moves the weights of a block, at the identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.feedforward import FeedForwardWeights
from isobasin.symmetries.product import Product


def stored_tangents(block: AttentionBlock | FeedForward, tensors: Parts) -> Tensor:
    """The stated directions of a block's stored values, tensor after tensor: `(values, dimension)`."""
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in block.shapes().items()}

    # Storing is linear, so it takes directions as it takes weights.
    def stored(direction: Parts) -> Tensor:
        if isinstance(block, AttentionBlock):
            written = block.stored(direction)
        else:
            written = block.write(zeros, FeedForwardWeights(**direction))
        return torch.cat([written[name].flatten() for name in zeros if name not in block.deciding])

    weights = block.read(tensors).tensors()
    found = tangents(block.group, weights)
    each = [stored({name: part[..., k] for name, part in found.items()}) for k in range(block.group.dimension)]
    return torch.stack(each, 1) if each else torch.zeros(len(stored(weights)), 0).double()


def tangents(group: Product[Any, Any], weights: Parts) -> Parts:
    """The derivative of every weight as it is stored, by every coordinate of the group, coordinates last."""
    found = [part for factor in (*group.factors, *group.unread) for part in _of_factor(group, factor, weights)]
    return {
        name: torch.cat([weight.new_zeros(*weight.shape, 0), *(part[name] for part in found)], -1)
        for name, weight in weights.items()
    }


def _of_factor(group: Product[Any, Any], factor: Factor, weights: Parts) -> list[Parts]:
    """The same by one factor's coordinates: at the identity each factor moves by itself."""
    identity = factor.identity()

    def moved(coordinates: Parts) -> Parts:
        return group.stored(factor.act({**identity, **factor.chart(coordinates)}, weights))

    start = {
        name: torch.zeros(shape, dtype=torch.float64) for name, shape in factor.coordinates.items() if 0 not in shape
    }
    if not start:
        return []
    # Of every weight by every coordinate: (weight's axes, coordinate's axes).
    derivatives = jacrev(moved)(start)
    return [
        {weight: found[name].flatten(weights[weight].ndim) for weight, found in derivatives.items()} for name in start
    ]
