"""Means of models whose heads are matched: of tensors, and of circuits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from isobasin.errors import ArchitectureError
from isobasin.matching.attention import align_heads
from isobasin.matching.circuits import effective_bias
from isobasin.matching.latents import of
from isobasin.matching.sides import Sides, pair_sides
from isobasin.symmetries.groups import QUERY_KEY, VALUE_OUTPUT, AttentionGroup
from isobasin.symmetries.weights import AttentionWeights


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`Σ_i w_i x_i` in float64 for weights whose sum is 1; exact where all are equal, or all but one weight are 0."""
    # With the last one all of it is there: rounded, 1 - t and t needn't add to 1.
    totals = [*accumulate(weights[:-1]), 1.0]
    mean = tensors[0].to(torch.float64)
    for tensor, weight, total in zip(tensors[1:], weights[1:], totals[1:], strict=True):
        if weight:
            mean = torch.lerp(mean, tensor.to(torch.float64), weight / total)
    return mean


@dataclass(frozen=True)
class CircuitMean:
    """The block whose circuits are nearest to the mean circuits of some blocks.

    Attributes:
        weights: In the first block's gauge.
        query_key: Share of the mean Q-K circuits that heads of this width can't hold, `||M - M'|| / ||M||` over all
            heads, `(...)`.
        value_output: Likewise of V-O.
    """

    weights: AttentionWeights
    query_key: Tensor
    value_output: Tensor


def circuit_mean(
    group: AttentionGroup, blocks: Sequence[AttentionWeights], weights: Sequence[float], max_condition: float = math.inf
) -> CircuitMean:
    """Average what heads compute with, `M = Q K^T` and `N = V O^T`, instead of Q, K, V and O.

    Each mean, `Σ_i w_i L_i R_i^T`, has rank up to k·n for k blocks; the nearest of rank n is a head again (Eckart and
    Young). On a rotated plane it is the rank-1 matrix nearest to `Σ_i w_i q_i k_i^H`. Queries that share a key are
    stacked, as are the outputs that share a value. Biases that no head can do without are one more row; of those
    that trade, the mean is taken of what they add together, `b_O + Σ b_V O^T`; those that softmax cancels are averaged.

    Normalised queries and keys have no circuit that scores depend on: theirs is the mean of the weights themselves, as
    is that of gains, tables and sinks.

    What reads a latent has circuits in that latent's basis, which means don't keep: latent attention is refused.

    A circuit says nothing about its head's gauge: of all of them, the element of the group is taken that brings the
    result nearest to the first block, so that with all weight on it the result is that block.

    Args:
        group: Of the blocks.
        blocks: Float64 weights of the same shapes, `...` leading dimensions, heads in matched order.
        weights: One for each block; their sum is 1.
        max_condition: Largest condition number of the maps that bring the result into the first block's gauge.

    Raises:
        ArchitectureError: The blocks have latent attention.
    """
    if of(group):
        raise ArchitectureError("circuits of latent attention can't be averaged: use --space weights")
    names = blocks[0].tensors()
    mean = AttentionWeights(**{name: weighted_mean([getattr(b, name) for b in blocks], weights) for name in names})
    mean, vo_lost = _with_nearest(group, VALUE_OUTPUT, mean, blocks, weights)
    qk_lost = torch.zeros_like(vo_lost)
    if group.normed is None:
        mean, qk_lost = _with_nearest(group, QUERY_KEY, mean, blocks, weights)
    if mean.output_bias is not None:
        added = weighted_mean([effective_bias(group, b) for b in blocks], weights)
        mean = replace(mean, output_bias=mean.output_bias + added - effective_bias(group, mean))
    batch = tuple(mean.key.shape[:-3])
    start = group.identity(batch, mean.key.device)
    found = align_heads(group, blocks[0], mean, start.outer, start.inner, max_condition=max_condition)
    return CircuitMean(found.moved, qk_lost, vo_lost)


def _with_nearest(
    group: AttentionGroup,
    pair: str,
    mean: AttentionWeights,
    blocks: Sequence[AttentionWeights],
    weights: Sequence[float],
) -> tuple[AttentionWeights, Tensor]:
    """Weights with the sides nearest to the weighted mean of a pair's circuits, and the share of that lost, `(...)`."""
    parts, lost, total = mean.tensors(), torch.zeros(()), torch.zeros(())
    each = [pair_sides(group, block, pair) for block in blocks]
    for factor, *models in zip(group.pairs[pair], *each, strict=True):
        left, right, more_lost, more = _nearest_sides(models, weights)
        parts = factor.with_sides(parts, left, right)
        lost, total = lost + more_lost, total + more
    return AttentionWeights(**parts), torch.where(total > 0, lost / total, torch.zeros_like(total)).sqrt()


def _nearest_sides(models: Sequence[Sides], weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides of one factor, the squared norm of what they lose, and of the whole, `(...)`; circuit by circuit."""
    left, right = (list(parts) for parts in zip(*(model.tall().blocks() for model in models), strict=True))
    found_left, found_right, lost, total = nearest(left, right, weights)

    def side(blocks: Tensor, like: Tensor) -> Tensor:
        columns = blocks.movedim(-3, -2).flatten(-2).squeeze(-3)
        return columns.unflatten(-2, (like.shape[-3], -1))

    lost, total = (x.sum((-3, -2, -1)) for x in (lost, total))
    return side(found_left, models[0].left), side(found_right, models[0].right), lost, total


def nearest(
    lefts: Sequence[Tensor], rights: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrix of rank n nearest to `Σ_i w_i L_i R_i^H`, as factors in the balanced gauge; the sum is never formed.

    With `[w_i L_i] = Z_L T_L`, `[R_i] = Z_R T_R` (QR) and `T_L T_R^H = S Σ W^H` the factors are `Z_L S Σ^{1/2}` and
    `Z_R W Σ^{1/2}`, cut to n columns.

    Args:
        lefts: `(..., rows, n)` of each model, real or complex.
        rights: Likewise, with rows of their own.
        weights: One for each model.

    Returns:
        Both factors, the squared norm of what was cut, and the squared norm of the whole sum, `(...)`.
    """
    n = lefts[0].shape[-1]
    if lefts[0].numel() == 0:
        nothing = lefts[0].new_zeros(lefts[0].shape[:-2], dtype=torch.float64)
        return lefts[0], rights[0], nothing, nothing
    z_left, t_left = torch.linalg.qr(torch.cat([w * x for x, w in zip(lefts, weights, strict=True)], -1))
    z_right, t_right = torch.linalg.qr(torch.cat(list(rights), -1))
    s, sigma, wh = torch.linalg.svd(t_left @ t_right.mH, full_matrices=False)
    root = sigma[..., :n].sqrt().unsqueeze(-2)
    left, right = z_left @ (s[..., :n] * root), z_right @ (wh.mH[..., :n] * root)
    # Fewer rows than features: the missing columns are zero.
    left, right = (torch.nn.functional.pad(x, (0, n - x.shape[-1])) for x in (left, right))
    return left, right, sigma[..., n:].square().sum(-1), sigma.square().sum(-1)
