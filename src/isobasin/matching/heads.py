"""Stage 1: which head is which.

The cost of a pair of heads compares what no continuous map changes, the circuits `M = Q K^T` and `N = V O^T`,
and under rotary positions the complex rank-1 matrices `q_p k_p^H` of every plane. Inner products of circuits
need no circuit: `<M_i, M'_j> = sum((Q_i^T Q'_j) * (K_i^T K'_j))`, so all pairs of heads are two products of
the stacked projections.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isobasin.choices import HeadCost
from isobasin.matching import latents
from isobasin.matching.factors import Factors, query_key_factors, value_output_factors
from isobasin.symmetries import tables
from isobasin.symmetries.bilinear import column_squares
from isobasin.symmetries.groups import AttentionGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights


def head_costs(
    group: AttentionGroup,
    reference: AttentionWeights,
    model: AttentionWeights,
    cost: HeadCost = HeadCost.rotary,
) -> Tensor:
    """How far apart the circuits of every pair of heads are; those that read latents once these are matched.

    On rotated planes `rotary` compares `Σ_p ||q_p k_p^H - q'_p k'_p^H||²`, and M elsewhere and where LayerNorm lets the
    two features of a plane change places: under rotary positions M is not a complete invariant. `centred` is exact
    where `1^T x` is constant over tokens, as after a LayerNorm without gain and bias; what reads latents, which have no
    such vector, isn't centred.

    Args:
        group: The blocks' group.
        reference: Weights with leading dimensions `...`.
        model: Weights of the same shapes.
        cost: What is compared.

    Returns:
        `(..., g, g', s, s')`: reference's query head (g, s) against the model's (g', s').
    """
    if group.latent is not None:
        model = latents.carried(group.latent, reference, model)
    pairs = [_circuits(group, w, cost) for w in (reference, model)]
    distances = {HeadCost.spectral: _spectral, HeadCost.cosine: _cosine}.get(cost, _distances)
    found = sum((distances(a, b) for a, b in zip(*pairs, strict=True)), start=torch.zeros(()))
    for x, y in zip(*(own_scores(group, w).values() for w in (reference, model)), strict=True):
        found = found + (x[..., :, None, :, None, :] - y[..., None, :, None, :, :]).square().sum(-1)
    return found


def own_scores(group: AttentionGroup, weights: AttentionWeights) -> dict[str, Tensor]:
    """What query heads add to their scores by themselves, up to free constants, `(..., g, s, n)`: tables and sinks."""
    found: dict[str, Tensor] = {}
    if weights.table is not None:
        found["table"] = tables.centred(group, weights.table)
    if weights.sink is not None:
        found["sink"] = weights.sink.unsqueeze(-1)
    return found


def _circuits(group: AttentionGroup, weights: AttentionWeights, cost: HeadCost) -> tuple[Factors, Factors]:
    query_key, value_output = query_key_factors(group, weights), value_output_factors(group, weights)
    if cost is HeadCost.rotary and group.norm is not QueryKeyNorm.centred:
        return query_key, value_output
    apart = group.latent is not None
    left = _flat(query_key.left, query_key.left_planes)
    right = _flat(query_key.right, query_key.right_planes, apart=apart)
    if cost is HeadCost.centred and not apart:
        width = weights.key.shape[-2]
        right = torch.cat([right[..., :width, :] - right[..., :width, :].mean(-2, True), right[..., width:, :]], -2)
    none = query_key.left_planes[..., :0], query_key.right_planes[..., :0]
    return Factors(left, right, *none), value_output


def _flat(linear: Tensor, planes: Tensor, *, apart: bool = False) -> Tensor:
    """Planes as ordinary columns beside the linear ones, whose bias row (if they lack it) is zero.

    Where the two read different inputs, `apart`, no row is common to them.
    """
    if planes.shape[-1] == 0:
        return linear
    columns = torch.cat([planes.real, planes.imag], dim=-1)
    above = linear.shape[-2] if apart else 0
    columns = torch.nn.functional.pad(columns, (0, 0, above, 0))
    linear = torch.nn.functional.pad(linear, (0, 0, 0, columns.shape[-2] - linear.shape[-2]))
    return torch.cat([linear, columns], dim=-1)


def _spectral(a: Factors, b: Factors) -> Tensor:
    """`||A_i - B_j||_2²` of all pairs.

    The largest eigenvalue of `G_L G_R`, the Grams of `[L_i, L'_j]` and `[R_i, -R'_j]`.
    """
    left, right = _pair_gram(a.left, b.left, 1), _pair_gram(a.right, b.right, -1)
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return torch.linalg.eigvalsh(root.mT @ right @ root)[..., -1].clamp(min=0)


def _pair_gram(x: Tensor, y: Tensor, sign: int) -> Tensor:
    """Gram matrix of the columns `[x_i, ± y_j]` of every pair of heads, `(..., g, g', s, s', 2n, 2n)`."""
    cross = sign * _gram(x, y).movedim(-3, -5).movedim(-2, -3)
    own = [(t.mT @ t).unsqueeze(i).unsqueeze(j) for t, i, j in ((x, -4, -3), (y, -5, -4))]
    own = [t.expand(cross.shape) for t in own]
    return torch.cat([torch.cat([own[0], cross], -1), torch.cat([cross.mT, own[1]], -1)], -2)


def _cosine(a: Factors, b: Factors) -> Tensor:
    """`1 - <A_i, B_j> / ||A_i|| ||B_j||` of all pairs; a circuit that is zero is at distance 1 from all."""
    squares_a, squares_b = circuit_squares(a), circuit_squares(b)
    norms = (squares_a[..., :, None, :, None] * squares_b[..., None, :, None, :]).sqrt()
    inner = _inner(a.left, b.left, a.right, b.right)
    return 1 - torch.where(norms > 0, inner / norms, torch.zeros_like(inner))


def _distances(a: Factors, b: Factors) -> Tensor:
    """`||A_i - B_j||²` of the circuits of all pairs of heads, `(..., g, g', s, s')`."""
    squares_a, squares_b = circuit_squares(a), circuit_squares(b)
    outer = squares_a[..., :, None, :, None] + squares_b[..., None, :, None, :]
    return outer - 2 * (_inner(a.left, b.left, a.right, b.right) + _inner_planes(a, b))


def circuit_squares(x: Factors) -> Tensor:
    """Squared norm of every head's circuit, `(..., g, s)`; one side's single slot broadcasts."""
    linear = ((x.left.mT @ x.left) * (x.right.mT @ x.right)).sum((-2, -1))
    planes = (column_squares(x.left_planes) * column_squares(x.right_planes)).sum(-1)
    return linear + planes


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """`x_i^T y_j` for all pairs of heads: `(..., g, s, n, g', s', n')`, one matrix product."""
    stacked = [t.movedim(-2, -4).flatten(-3) for t in (x, y)]
    product = stacked[0].mT @ stacked[1]
    return product.unflatten(-1, y.shape[-4:-2] + y.shape[-1:]).unflatten(-4, x.shape[-4:-2] + x.shape[-1:])


def _inner(left_a: Tensor, left_b: Tensor, right_a: Tensor, right_b: Tensor) -> Tensor:
    """`<L_i R_i^T, L'_j R'_j^T>` for all pairs of heads, `(..., g, g', s, s')`."""
    inner = torch.einsum("...gsaGSb,...gtaGTb->...gGstST", _gram(left_a, left_b), _gram(right_a, right_b))
    return inner.flatten(-4, -3).flatten(-2, -1)


def _inner_planes(a: Factors, b: Factors) -> Tensor:
    """`Σ_p Re <l_p r_p^H, l'_p r'_p^H> = Σ_p Re (l^H l') (r'^H r)`, like `_inner`."""

    def gram(x: Tensor, y: Tensor) -> Tensor:
        first, second = (t.movedim(-1, -4).flatten(-3, -2) for t in (x, y))
        product = first.conj() @ second.mT
        return product.unflatten(-1, y.shape[-4:-2]).unflatten(-3, x.shape[-4:-2])

    left, right = gram(a.left_planes, b.left_planes), gram(a.right_planes, b.right_planes)
    inner = torch.einsum("...pgsGS,...pgtGT->...gGstST", left, right.conj()).real
    return inner.flatten(-4, -3).flatten(-2, -1)


def assign(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The head permutation of least total cost, exactly.

    With grouped queries the assignment inside every pair of groups is solved first; its value is the cost
    of that pair, and the outer assignment is then optimal over all of `S_s wr S_g`.

    Args:
        costs: `(..., g, g', s, s')`.

    Returns:
        `(outer, inner)` as `AttentionElement` has them, `(..., g)` and `(..., g, s)`, on costs' device.
    """
    *batch, g, _, s, _ = costs.shape
    tables = costs.reshape(-1, g, g, s, s).cpu().numpy()
    outer = np.empty((len(tables), g), dtype=np.int64)
    inner = np.empty((len(tables), g, s), dtype=np.int64)
    for b, table in enumerate(tables):
        slots = np.array([[linear_sum_assignment(table[i, j])[1] for j in range(g)] for i in range(g)])
        values = np.take_along_axis(table, slots[..., None], axis=-1).sum((-2, -1))
        outer[b] = linear_sum_assignment(values)[1]
        inner[b] = slots[np.arange(g), outer[b]]
    return (
        torch.from_numpy(outer).reshape(*batch, g).to(costs.device),
        torch.from_numpy(inner).reshape(*batch, g, s).to(costs.device),
    )
