"""The two sides of each bilinear pair, in the form that matching compares.

Which bias rows take part follows from the group: a bias that is free, or that trades with another, is no
invariant and stays out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.symmetries import bilinear, gains
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights


@dataclass(frozen=True)
class Factors:
    """Sides `(L, R)` of one kind of pair for every key/value head.

    A side that query heads share has one slot, the other one slot per query head.

    Attributes:
        left: Unrotated columns, `(..., g, slots, rows, n)`.
        right: Likewise, with its own slots and rows.
        left_planes: Complex columns, `(..., g, slots, rows, p)`.
        right_planes: Likewise.
    """

    left: Tensor
    right: Tensor
    left_planes: Tensor
    right_planes: Tensor

    def tall(self) -> Factors:
        """Slots stacked into rows: `(..., g, slots * rows, ·)`, as one map serves all of a group's queries."""
        return Factors(*(x.flatten(-3, -2) for x in vars(self).values()))


def _rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bias as one more row."""
    return weight if bias is None else torch.cat([weight, bias.unsqueeze(-2)], dim=-2)


def _factors(group: BilinearGroup, left: Tensor, right: Tensor, right_planes: Tensor | None = None) -> Factors:
    rotated = right if right_planes is None else right_planes
    if not group.planes:
        return Factors(left, right, left[..., :0].to(torch.complex128), rotated[..., :0].to(torch.complex128))
    return Factors(
        bilinear.linear_part(group, left),
        bilinear.linear_part(group, right),
        bilinear.plane_part(group, left),
        bilinear.plane_part(group, rotated),
    )


def query_key_factors(group: AttentionGroup, weights: AttentionWeights) -> Factors:
    """Q and K; the key bias takes part on planes, and elsewhere only where softmax doesn't cancel it.

    In latent attention the planes are those of each head's rotary queries with the one rotary key. Where queries and
    keys are normalised, columns have the signs that make gains positive (`gains.unsigned`).
    """
    weights = weights if group.norm is None else gains.unsigned(group, weights)
    if weights.rotary_query is not None and weights.rotary_key is not None:
        queries = bilinear.plane_part(group.rotary, weights.rotary_query)
        keys = bilinear.plane_part(group.rotary, _rows(weights.rotary_key, weights.rotary_key_bias))
        keys = keys[..., None, None, :, :].expand(*queries.shape[:-3], 1, -1, -1)
        return Factors(weights.query, weights.key.unsqueeze(-3), queries, keys)
    query = _rows(weights.query, weights.query_bias)
    rotated = _rows(weights.key, weights.key_bias).unsqueeze(-3)
    key = weights.key.unsqueeze(-3) if group.key_shift else rotated
    return _factors(group.query_key, query, key, rotated)


def rotary_factors(group: AttentionGroup, weights: AttentionWeights) -> Factors:
    """The planes of latent attention as those of one head: its queries are all heads', one after another."""
    found = query_key_factors(group, weights)
    queries = found.left_planes.flatten(-4, -2)[..., None, None, :, :]
    keys = found.right_planes[..., :1, :, :, :]
    return Factors(queries.real[..., :0], keys.real[..., :0], queries, keys)


def value_output_factors(group: AttentionGroup, weights: AttentionWeights) -> Factors:
    """V and O; the value bias takes part only where it can't trade with the output bias."""
    value = _rows(weights.value, None if group.value_shift else weights.value_bias)
    return _factors(group.value_output, value.unsqueeze(-3), weights.output)


def with_query_key(group: AttentionGroup, weights: AttentionWeights, factors: Factors) -> AttentionWeights:
    """The weights with other Q and K, inverse to `query_key_factors` without norm; a bias that takes no part stays."""
    pair, width = group.query_key, weights.key.shape[-2]
    query = bilinear.join(pair, factors.left, factors.left_planes)
    right, planes = factors.right.squeeze(-3), factors.right_planes.squeeze(-3)
    moved = replace(
        weights,
        query=query[..., :width, :],
        key=bilinear.join(pair, right[..., :width, :], planes[..., :width, :]),
    )
    if weights.query_bias is not None:
        moved = replace(moved, query_bias=query[..., width, :])
    if weights.key_bias is not None:
        free = bilinear.linear_part(pair, weights.key_bias.unsqueeze(-2))
        linear = free if group.key_shift else right[..., width:, :]
        moved = replace(moved, key_bias=bilinear.join(pair, linear, planes[..., width:, :]).squeeze(-2))
    return moved


def with_value_output(group: AttentionGroup, weights: AttentionWeights, factors: Factors) -> AttentionWeights:
    """The weights with other V and O, the inverse of `value_output_factors`; a bias that takes no part stays."""
    pair, width = group.value_output, weights.value.shape[-2]
    value = bilinear.join(pair, factors.left, factors.left_planes).squeeze(-3)
    output = bilinear.join(pair, factors.right, factors.right_planes)
    moved = replace(weights, value=value[..., :width, :], output=output)
    if value.shape[-2] > width:
        moved = replace(moved, value_bias=value[..., width, :])
    return moved
