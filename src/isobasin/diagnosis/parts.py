"""A block's stored tensors as rows by role, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.architectures.projection import Projection

# Columns that are looked at where there are more.
_COLUMNS = 64


def read(block: Block, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a block in float64, `(rows, columns)`, and of every stored matrix the transposed one's."""
    found: dict[str, Tensor] = {}
    for role, projection in block.projections.items():
        stored = tensors[projection.weight].double()
        found[role] = _rows(projection, stored)
        if stored.ndim == 2:
            # Of a square matrix both are the same; of another it may have been reshaped where it had to be transposed.
            turned = stored.reshape(stored.shape[1], stored.shape[0]).T
            found[f"{role}'"] = _rows(projection, turned.contiguous())
        if projection.bias is not None:
            bias = tensors[projection.bias].double()
            whole = projection in block.writers
            found[f"{role}_bias"] = (bias if whole else projection.layout.read(bias, bias=True)).reshape(-1, 1)
    for role, other in block.others.items():
        found[role] = other.layout.read(tensors[other.weight].double(), bias=True).reshape(-1, 1)
    return found


def _rows(projection: Projection, stored: Tensor) -> Tensor:
    """Canonical rows of a stored weight, `(heads * features, width)`."""
    return projection.layout.read(stored).transpose(1, 2).flatten(0, 1)


def write(block: Block, tensors: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors like these with other parts, in their types."""
    found = {name: x.contiguous().clone() for name, x in tensors.items()}
    for role, projection in block.projections.items():
        width = parts[role].shape[1]
        heads = projection.layout.read(found[projection.weight]).shape[0]
        projection.layout.put(
            found[projection.weight], parts[role].reshape(heads, -1, width).transpose(1, 2).contiguous()
        )
        if projection.bias is not None:
            bias = parts[f"{role}_bias"]
            if projection in block.writers:
                found[projection.bias].copy_(bias.reshape(found[projection.bias].shape))
            else:
                projection.layout.put(found[projection.bias], bias, bias=True)
    for role, other in block.others.items():
        other.layout.put(found[other.weight], parts[role], bias=True)
    return found


def columns(count: int) -> Tensor:
    """Which of so many columns are looked at, always the same ones."""
    return torch.linspace(0, count - 1, min(_COLUMNS, count)).long()


def sampled(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with a few of the columns."""
    return {role: x[:, columns(x.shape[1])].contiguous() for role, x in parts.items()}
