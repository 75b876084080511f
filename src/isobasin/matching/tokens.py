"""Circuits as a few sums of tokens see them: numbers that no move of a whole model changes.

Tokens' vectors turn with the residual stream, so what a circuit M makes of two of them, `e_i M e_j^T`, is the same in
every basis, for M = Q K^T, V O^T, or a feed-forward block's `W_up^T W_down` (arXiv 2312.04828, for whole layers there).
Vectors are made as long in all directions first, `E (E^T E)^{-1/2}`, so that a few frequent ones don't speak for all.
K of their sums, with signs that all models share, are the rows of S: `S M S^T` is a random projection of M, and two of
them correlate about as their circuits do. That takes no match of the streams, nor another model at hand. What a circuit
makes of one sum with itself is left out: much of it is a multiple of the identity, in models trained apart as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.matching.assignment import linear_sum_assignment
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights
from isobasin.symmetries.weights import AttentionWeights

# How many sums of tokens; of so many tokens at most, which every larger vocabulary has as well.
SUMS, TOKENS = 12, 4096
# What directions that hardly any token has are divided by, relative to the mean: below that is noise.
_LEAST = 1e-2
_SEED = 0


def sums(vectors: Tensor) -> Tensor:
    """The rows of S, `(K, d)`, from the vectors of the first tokens, `(n, d)`: they turn with the stream."""
    generator = torch.Generator().manual_seed(_SEED)
    signs = torch.randint(0, 2, (TOKENS, SUMS), generator=generator).to(vectors) * 2 - 1
    squares, basis = torch.linalg.eigh(vectors.mT @ vectors)
    lengths = (squares.clamp(min=0) + _LEAST * squares.mean()).sqrt()
    return signs[: len(vectors)].mT @ vectors @ (basis / lengths) @ basis.mT


def seen_heads(weights: AttentionWeights, seen_by: Tensor) -> dict[str, Tensor]:
    """`S Q K^T S^T` and `S V O^T S^T` of every query head, `(heads, K, K)`, of norm 1; none where they read latents.

    Queries and keys that are normalised have their gains, which change signs with their columns.
    """
    query, key = _gained(weights.query, weights.query_gain), _gained(weights.key, weights.key_gain)
    pairs = {"query_key": (query, key.unsqueeze(1))}
    pairs["value_output"] = weights.value.unsqueeze(1), weights.output
    width = seen_by.shape[-1]
    there = {name: pair for name, pair in pairs.items() if all(side.shape[-2] == width for side in pair)}
    return {name: _seen(*pair, seen_by).flatten(0, 1) for name, pair in there.items()}


def _gained(columns: Tensor, gain: Tensor | None) -> Tensor:
    return columns if gain is None else columns * gain.unsqueeze(-2)


def seen_units(group: FeedForwardGroup, weights: FeedForwardWeights, seen_by: Tensor) -> Tensor:
    """`S W_up^T D W_down S^T` of a block, `(1, K, K)`, of all experts at once; of norm 1.

    D is diagonal and makes every unit count by what no scale changes of it (`unit_sizes`).
    """
    (m, n), gate = group.powers, weights.gate
    factors = weights.up.norm(dim=-1, keepdim=True) ** (m - 1)
    factors = factors if gate is None else factors * gate.norm(dim=-1, keepdim=True) ** n
    up, down = (x.reshape(-1, x.shape[-1]) for x in (weights.up * factors.nan_to_num(0, 0, 0), weights.down))
    return _seen(up.mT, down.mT, seen_by).unsqueeze(0)


def _seen(left: Tensor, right: Tensor, seen_by: Tensor) -> Tensor:
    """`S L R^T S^T` for sides `(..., d, n)` without its diagonal, divided by its norm; 0 stays."""
    found = (seen_by @ left) @ (seen_by @ right).mT
    found = found - torch.diag_embed(found.diagonal(dim1=-2, dim2=-1))
    norm = torch.linalg.matrix_norm(found, keepdim=True)
    return found / torch.where(norm > 0, norm, 1)


Seen = Mapping[str, Tensor]
"""What one layer's blocks make of the sums of tokens, by name, `(heads, K, K)`, of a feed-forward block `(1, K, K)`."""


@dataclass(frozen=True)
class Partners:
    """Which layer of one model goes with which of another.

    Attributes:
        ours: Indices of layers of the one with fewer, or of the first.
        theirs: Of the other, in the same order.
        scores: Of these pairs by kind of block, `(pairs,)`: mean correlations of what they make of tokens.
    """

    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    scores: Mapping[str, Tensor]


def partners(ours: Sequence[Seen], theirs: Sequence[Seen], kinds: Mapping[str, Sequence[str]]) -> Partners:
    """Assign layers to layers, of two models with any numbers of them, so that they correlate best.

    Args:
        ours: What the layers of one model make of tokens.
        theirs: Likewise of the other.
        kinds: Names of what a kind of block has; its heads are assigned by all of these together.
    """
    known = alike(ours, theirs, kinds)
    costs = sum((score.nan_to_num(0) for score in known.values()), start=torch.zeros(len(ours), len(theirs)))
    rows, columns = linear_sum_assignment(costs.double().numpy(), maximize=True)
    chosen = {kind: score[rows, columns] for kind, score in known.items()}
    return Partners(tuple(int(i) for i in rows), tuple(int(i) for i in columns), chosen)


def alike(ours: Sequence[Seen], theirs: Sequence[Seen], kinds: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """How far what layers make of tokens correlates, by kind of block, `(ours, theirs)`; arguments as of `partners`."""
    scores = {
        kind: torch.tensor([[_alike(x, y, names) for y in theirs] for x in ours]) for kind, names in kinds.items()
    }
    return {kind: score for kind, score in scores.items() if bool(score.isfinite().any())}


def _alike(x: Seen, y: Seen, names: Sequence[str]) -> float:
    """The mean correlation of two blocks' circuits, heads assigned; nan where they have none in common."""
    both = [torch.einsum("akl,bkl->ab", x[n].double(), y[n].double()) for n in names if n in x and n in y]
    if not both:
        return float("nan")
    cosines = torch.stack(both).mean(0)
    if not cosines.numel():
        return float("nan")
    return float(cosines[linear_sum_assignment(cosines.numpy(), maximize=True)].mean())
