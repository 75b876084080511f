"""Numbers of one block that no element of its whole group changes: singular values of circuits, sizes of units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.matching.canonical import head_sizes
from isobasin.matching.feedforward import unit_sizes
from isobasin.matching.sides import Sides, all_sides
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.rotation import Rotation
from isobasin.symmetries.weights import AttentionWeights

# Of a block with more units than that, every second one is kept, or every third and so on, so that files stay small.
_UNITS = 4096


def invariants(
    block: AttentionBlock | FeedForward, stored: Mapping[str, Tensor], device: str = "cpu"
) -> dict[str, Tensor]:
    """The invariants of one block by what they are of, as `isobasin.Fingerprint` names them; heads in `head_order`.

    Args:
        block: What the tensors are.
        stored: The block's tensors as they are stored, by name.
        device: Where the work is done.
    """
    if not isinstance(block, AttentionBlock):
        sizes = unit_sizes(block.group, block.read(stored, device)).flip(0)
        return {"units": sizes[:: -(-len(sizes) // _UNITS)]}
    weights, group = block.read(stored, device), block.group
    order = head_order(group, weights)
    found: dict[str, Tensor] = {}
    for pair, circuit in all_sides(group, weights).items():
        for sides in circuit:
            name = {"query_key": "planes"}.get(pair, "value_planes") if sides.left.is_complex() else pair
            name += f"_{sides.width}" if sides.left.is_complex() and sides.width > 1 else ""
            found[name] = _spectra(sides).flatten(0, 1)[order]
    for factor in group.factors:
        if isinstance(factor, Rotation):
            found[factor.name] = torch.linalg.svdvals(weights.tensors()[factor.writers[0]])
    return found


def head_order(group: AttentionGroup, weights: AttentionWeights) -> Tensor:
    """The query heads with the largest circuits first; as they are where none can change places."""
    sizes = head_sizes(group, weights).flatten()
    return sizes.argsort(descending=True) if group.permuted else torch.arange(len(sizes), device=sizes.device)


def _spectra(sides: Sides) -> Tensor:
    """Singular values of every query head's circuits, `(g, s, columns)`; of a plane its size."""
    left, right = (torch.linalg.qr(x, mode="r").R for x in sides.blocks())
    return torch.linalg.svdvals(left @ right.mH).flatten(-2)
