"""Stage 1: which head is which.

The cost of a pair of heads compares what no continuous map changes, the circuits `M = Q K^T` and `N = V O^T`,
and under rotary positions the complex rank-1 matrices `q_p k_p^H` of every plane. Inner products of circuits
need no circuit: `<M_i, M'_j> = sum((Q_i^T Q'_j) * (K_i^T K'_j))`, so all pairs of heads are two products of
the stacked projections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobasin.choices import HeadCost
from isobasin.matching import latents
from isobasin.matching.assignment import linear_sum_assignment
from isobasin.matching.products import with_rows
from isobasin.matching.sides import Sides, pair_sides
from isobasin.symmetries.centred import Centred
from isobasin.symmetries.groups import QUERY_KEY, VALUE_OUTPUT, AttentionGroup
from isobasin.symmetries.shift import Tables
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
    return _with_scores(_summed(_pairs(group, reference, model, cost), cost), group, reference, model)


def head_permutation(
    group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights, cost: HeadCost = HeadCost.rotary
) -> tuple[Tensor, Tensor]:
    """`assign` of `head_costs`, from float32 products wherever their rounding can't have decided it.

    The identity where the group permutes no heads.
    """
    if not group.permuted:
        fixed = group.identity(tuple(reference.key.shape[:-3]), reference.key.device)
        return fixed.outer, fixed.inner
    pairs = list(_pairs(group, reference, model, cost))
    if cost not in (HeadCost.spectral, HeadCost.cosine):
        found = [_quick_costs(a, b) for a, b in pairs]
        costs = _with_scores(sum((x for x, _ in found), start=torch.zeros(())), group, reference, model)
        blur = sum((x for _, x in found), start=torch.zeros(()))
        outer, inner, margin = _assigned(costs)
        # An exchange of two partners is a sum of four costs.
        if bool((margin > 4 * blur.flatten(outer.ndim - 1).amax(-1)).all()):
            return outer, inner
    return assign(_with_scores(_summed(pairs, cost), group, reference, model))


def _summed(pairs: Iterable[tuple[Circuit, Circuit]], cost: HeadCost) -> Tensor:
    """How far apart the circuits of two models are, all pairs together."""
    distances = {HeadCost.spectral: _spectral, HeadCost.cosine: _cosine}.get(cost, _distances)
    return sum((distances(a, b) for a, b in pairs), start=torch.zeros(()))


def _pairs(
    group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights, cost: HeadCost
) -> Iterator[tuple[Circuit, Circuit]]:
    """The circuits of both models, pair by pair."""
    found = [_circuits(group, w, cost) for w in (reference, latents.carried(group, reference, model))]
    return zip(*found, strict=True)


def _with_scores(costs: Tensor, group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights) -> Tensor:
    """Costs, and what heads add to their scores by themselves."""
    for x, y in zip(*(own_scores(group, w).values() for w in (reference, model)), strict=True):
        costs = costs + (x[..., :, None, :, None, :] - y[..., None, :, None, :, :]).square().sum(-1)
    return costs


def own_scores(group: AttentionGroup, weights: AttentionWeights) -> dict[str, Tensor]:
    """What query heads add to their scores by themselves, up to free constants, `(..., g, s, n)`: tables and sinks."""
    found: dict[str, Tensor] = {}
    for factor in group.factors:
        if isinstance(factor, Tables) and weights.table is not None:
            found["table"] = factor.unshifted(weights.table)
    if weights.sink is not None:
        found["sink"] = weights.sink.unsqueeze(-1)
    return found


Circuit = Sequence[Sides]
"""The sides of one pair's factors: a head's circuit is the sum of theirs."""


def _circuits(group: AttentionGroup, weights: AttentionWeights, cost: HeadCost) -> list[Circuit]:
    query_key, value_output = (pair_sides(group, weights, pair) for pair in (QUERY_KEY, VALUE_OUTPUT))
    # What reads latents has other inputs than the one rotary key.
    apart = bool(latents.of(group))
    if cost is not HeadCost.rotary or isinstance(group.normed, Centred):
        query_key = [_flat(query_key, apart=apart)]
    if cost is HeadCost.centred and not apart:
        query_key = [_centred(x, weights.key.shape[-2]) for x in query_key]
    return [query_key, [_flat(value_output)] if cost in (HeadCost.spectral, HeadCost.cosine) else value_output]


def _flat(circuit: Circuit, *, apart: bool = False) -> Sides:
    """All columns as real ones side by side, those that rotate as two; `apart`: no row of R is common to factors."""
    left = _beside([x.left for x in circuit])
    return Sides(left, _beside([x.right for x in circuit], apart=apart), left.shape[-1])


def _beside(parts: Sequence[Tensor], *, apart: bool = False) -> Tensor:
    """Columns side by side, zeros in the bias row of those that lack it, or wherever the others have rows."""
    columns = [torch.cat([x.real, x.imag], dim=-1) if x.is_complex() else x for x in parts]
    heights = [x.shape[-2] for x in columns]
    starts = [sum(heights[:i]) * apart for i in range(len(columns))]
    total = max(start + height for start, height in zip(starts, heights, strict=True))
    pads = [(0, 0, start, total - start - x.shape[-2]) for start, x in zip(starts, columns, strict=True)]
    return torch.cat([torch.nn.functional.pad(x, pad) for x, pad in zip(columns, pads, strict=True)], dim=-1)


def _centred(x: Sides, width: int) -> Sides:
    """R without the mean of its first rows: `M (I - 11^T/d)`."""
    rows = x.right[..., :width, :]
    return Sides(x.left, torch.cat([rows - rows.mean(-2, True), x.right[..., width:, :]], -2), x.width)


def _spectral(a: Circuit, b: Circuit) -> Tensor:
    """`||A_i - B_j||_2²` of all pairs.

    The largest eigenvalue of `G_L G_R`, the Grams of `[L_i, L'_j]` and `[R_i, -R'_j]`.
    """
    left, right = _pair_gram(a[0].left, b[0].left, 1), _pair_gram(a[0].right, b[0].right, -1)
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return torch.linalg.eigvalsh(root.mT @ right @ root)[..., -1].clamp(min=0)


def _pair_gram(x: Tensor, y: Tensor, sign: int) -> Tensor:
    """Gram matrix of the columns `[x_i, ± y_j]` of every pair of heads, `(..., g, g', s, s', 2n, 2n)`."""
    cross = sign * _gram(x, y).movedim(-3, -5).movedim(-2, -3)
    own = [(t.mT @ t).unsqueeze(i).unsqueeze(j) for t, i, j in ((x, -4, -3), (y, -5, -4))]
    own = [t.expand(cross.shape) for t in own]
    return torch.cat([torch.cat([own[0], cross], -1), torch.cat([cross.mT, own[1]], -1)], -2)


def _cosine(a: Circuit, b: Circuit) -> Tensor:
    """`1 - <A_i, B_j> / ||A_i|| ||B_j||` of all pairs; a circuit that is zero is at distance 1 from all."""
    squares_a, squares_b = circuit_squares(a), circuit_squares(b)
    norms = (squares_a[..., :, None, :, None] * squares_b[..., None, :, None, :]).sqrt()
    inner = _inner(a, b)
    return 1 - torch.where(norms > 0, inner / norms, torch.zeros_like(inner))


def _distances(a: Circuit, b: Circuit) -> Tensor:
    """`||A_i - B_j||²` of the circuits of all pairs of heads, `(..., g, g', s, s')`."""
    squares = circuit_squares(a)[..., :, None, :, None] + circuit_squares(b)[..., None, :, None, :]
    return squares - 2 * _inner(a, b)


def _quick_costs(a: Circuit, b: Circuit) -> tuple[Tensor, Tensor]:
    """`_distances` without the norms, which every assignment adds up alike, by float32; and a bound on the error.

    With `X = L^T L'`, `Y = R'^T R`, errors of X are at most `ε ||L|| ||L'||` in Frobenius norm, and those of the sum
    `<X, Y>` at most `ε (||L|| ||L'|| ||Y|| + ||X|| ||R|| ||R'||)`: much where maps are ill-conditioned.
    """
    eps = 2 * torch.finfo(torch.float32).eps
    total, blur = torch.zeros(()), torch.zeros(())
    for x, y in zip(a, b, strict=True):
        left, right = (_quick_gram(*side) for side in zip(x.blocks(), y.blocks(), strict=True))
        wide, high = (_products(*sizes) for sizes in zip(x.sizes(), y.sizes(), strict=True))
        total = total + _contracted(left, right).double()
        blur = blur + eps * (wide * _norms(right) + _norms(left) * high).sum(-5)
    return -2 * total, 2 * blur


def _quick_gram(x: Tensor, y: Tensor) -> Tensor:
    """`_gram` by float32, circuits first."""
    x, y = (t.to(torch.complex64 if t.is_complex() else torch.float32).movedim(-3, -5) for t in (x, y))
    if x.is_complex():
        return _gram(x, y)
    left, right = (t.mT.flatten(-4, -2).flatten(0, -3) for t in (x, y))
    product = torch.stack([with_rows(b)(a) for a, b in zip(left, right, strict=True)])
    return _apart(product.unflatten(0, x.shape[:-4]), x, y)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """`x_i y_j` of all pairs of heads, circuits first, `(..., circuits, g, g', s, s')`."""
    x, y = (t.movedim(-1, -3) for t in (x, y))
    return x[..., :, None, :, None] * y[..., None, :, None, :]


def _norms(gram: Tensor) -> Tensor:
    """The norm of each pair's part of what `_gram` gives, in the same axes."""
    return torch.linalg.vector_norm(gram, dim=(-4, -1)).transpose(-3, -2).double()


def circuit_squares(circuit: Circuit) -> Tensor:
    """Squared norm of every head's circuit, `(..., g, s)`; one side's single slot broadcasts."""
    return sum((x.squares() for x in circuit), start=torch.zeros(()))


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """`x_i^H y_j` for all pairs of heads: `(..., g, s, n, g', s', n')`, one matrix product."""
    stacked = [t.movedim(-2, -4).flatten(-3) for t in (x, y)]
    return _apart(stacked[0].mH @ stacked[1], x, y)


def _apart(product: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Products of stacked heads, head by head, `(..., g, s, n, g', s', n')`."""
    return product.unflatten(-1, y.shape[-4:-2] + y.shape[-1:]).unflatten(-4, x.shape[-4:-2] + x.shape[-1:])


def _inner(a: Circuit, b: Circuit) -> Tensor:
    """`Re <L_i R_i^H, L'_j R'_j^H> = Re Σ (L^H L') ∘ (R'^H R)^T` for all pairs of heads, `(..., g, g', s, s')`."""
    total = torch.zeros(())
    for x, y in zip(a, b, strict=True):
        # Circuit by circuit: those are the first axis.
        left, right = (_gram(*(t.movedim(-3, -5) for t in pair)) for pair in zip(x.blocks(), y.blocks(), strict=True))
        total = total + _contracted(left, right)
    return total


def _contracted(left: Tensor, right: Tensor) -> Tensor:
    """`Re Σ X ∘ conj(Y)` over the features of each pair of heads and over circuits, for what `_gram` gives."""
    inner = torch.einsum("...bgsaGSc,...bgtaGTc->...gGstST", left, right.conj())
    return inner.real.flatten(-4, -3).flatten(-2, -1)


def assign(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The head permutation of least total cost, exactly.

    With grouped queries the assignment inside every pair of groups is solved first; its value is the cost
    of that pair, and the outer assignment is then optimal over all of `S_s wr S_g`.

    Args:
        costs: `(..., g, g', s, s')`.

    Returns:
        `(outer, inner)` as `AttentionElement` has them, `(..., g)` and `(..., g, s)`, on costs' device.
    """
    return _assigned(costs)[:2]


def _assigned(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The permutations, and what the cheapest exchange of two partners would add to the cost, `(...)`."""
    *batch, g, _, s, _ = costs.shape
    tables = costs.reshape(-1, g, g, s, s).cpu().numpy()
    outer = np.empty((len(tables), g), dtype=np.int64)
    inner = np.empty((len(tables), g, s), dtype=np.int64)
    margin = np.empty(len(tables))
    for b, table in enumerate(tables):
        slots = np.array([[linear_sum_assignment(table[i, j])[1] for j in range(g)] for i in range(g)])
        values = np.take_along_axis(table, slots[..., None], axis=-1).sum((-2, -1))
        outer[b] = linear_sum_assignment(values)[1]
        inner[b] = slots[np.arange(g), outer[b]]
        own = table[np.arange(g), outer[b]]
        margin[b] = min(_margin(values, outer[b]), *map(_margin, own, inner[b]))
    found = [torch.from_numpy(x).reshape((*batch, *x.shape[1:])).to(costs.device) for x in (outer, inner, margin)]
    return found[0], found[1], found[2]


def _margin(table: np.ndarray[Any, Any], order: np.ndarray[Any, Any]) -> float:
    """What the cheapest exchange of two partners would add to an assignment's cost; infinite where there is one."""
    swapped = table[:, order]
    added = swapped + swapped.T - swapped.diagonal() - swapped.diagonal()[:, None]
    np.fill_diagonal(added, np.inf)
    return float(added.min())
