"""Circuits of heads, `Q K^T` and `V O^T` (plane by plane under rotary positions): errors, rounding, degeneracy.

Circuits are what a block computes with; no continuous map changes them. None is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.choices import HeadCost
from isobasin.matching.heads import circuit_squares, head_costs, own_scores
from isobasin.matching.sides import Sides, all_sides, pair_sides
from isobasin.symmetries.groups import QUERY_KEY, AttentionGroup
from isobasin.symmetries.weights import AttentionWeights

# Root-mean-square error of rounding a number to the nearest of its type, relative to the number, over the type's
# epsilon: sqrt(E[1] / (12 E[m²])) for mantissas m spread log-uniformly over [1, 2).
_ROUNDING = 0.196
# What scores depend on where queries and keys are normalised: no circuit holds it.
_NORMED_BIASES = ("query_bias", "key_bias")
_NORMED = ("query", "key", *_NORMED_BIASES, "query_gain", "key_gain")


# Relative error of a circuit that counts as rounding: at least this in each type, since a copy may have been stored in
# an ill-conditioned gauge before, so many times what storing it now explains, and at most that share of the circuit.
FLOORS = {torch.float64: 1e-9, torch.float32: 1e-4}
_FACTOR = 5
_CEILING = 0.25

Stored = tuple[AttentionWeights, torch.dtype, AttentionWeights]
"""The weights of a block, the type that they are stored in, and what was rounded to it: the same but for biases that
are sums, whose sizes are those of their terms."""


def tolerance(group: AttentionGroup, *stored: Stored) -> float:
    """Relative error of circuits that rounding may cause between some copies of one block."""
    blurs = [float(rounding(group, *each)) for each in stored]
    floor = max(FLOORS.get(dtype, 0.0) for _, dtype, _ in stored)
    return min(max(_FACTOR * math.hypot(*blurs), floor), _CEILING)


def bias_tolerance(group: AttentionGroup, *stored: Stored) -> float:
    """How far apart it may bring what value and output biases add together: no share, a length."""
    return _FACTOR * math.hypot(*(float(bias_rounding(group, terms, dtype)) for _, dtype, terms in stored))


def score_tolerance(group: AttentionGroup, *stored: Stored) -> dict[str, float]:
    """How far apart it may bring biases of any head that `score_error` compares: lengths, too."""
    found: dict[str, float] = {}
    for name in _NORMED_BIASES if group.normed is not None else ():
        terms = [(getattr(each, name), dtype) for _, dtype, each in stored]
        # Each head's features are the last axis.
        blurs = [_ROUNDING * torch.finfo(d).eps * float(x.norm(dim=-1).max()) for x, d in terms if x is not None]
        found[name] = _FACTOR * math.hypot(*blurs)
    return found


def rounding(
    group: AttentionGroup,
    weights: AttentionWeights,
    dtype: torch.dtype,
    terms: AttentionWeights | None = None,
    known: Mapping[str, Sides] | None = None,
) -> Tensor:
    """Relative error of the circuits that storing the weights in `dtype` will cause, `(...)`; worst head.

    Independent rounding errors of relative size ρ in L and R change `L R^T` by `ρ sqrt(2 Σ_j ||l_j||² ||r_j||²)`.
    In the balanced gauge this is near ρ; a map of condition number c can raise it c-fold, one of complex scalings
    not at all.

    Args:
        group: The block's group.
        weights: Its weights.
        dtype: The type.
        terms: What is rounded, as in `Stored`; None for the weights themselves.
        known: Sides of the weights' factors, by part, with one slot and in any orthonormal basis of their rows: no norm
            depends on it.
    """
    rho = _ROUNDING * torch.finfo(dtype).eps
    worst = weights.key.new_zeros(weights.key.shape[:-3])
    for pair, factors in group.pairs.items():
        if all(factor.width == 1 for factor in factors):
            # Each column is a circuit by itself.
            worst = worst.clamp(min=rho * 2**0.5)
            continue
        tall = [known[factor.part] for factor in factors if known and factor.part in known]
        if len(tall) < len(factors):
            tall = [x.tall() for x in pair_sides(group, weights, pair)]
        rounded = tall if terms is None else [x.tall() for x in pair_sides(group, terms, pair)]
        columns, norm = sum(x.column_squares().sum(-1) for x in rounded), circuit_squares(tall)
        ratio = torch.where(norm > 0, columns / norm, 1).clamp(min=0).sqrt()
        worst = worst.maximum(rho * 2**0.5 * ratio.amax((-2, -1)))
    return worst


def circuit_error(
    group: AttentionGroup, a: AttentionWeights, b: AttentionWeights, rounded: Mapping[str, float] | None = None
) -> Tensor:
    """`||M_A - M_B|| / ||M_A||` of the worst key/value head and pair, `(...)`; heads already in the same order.

    `M_A - M_B = ΔL R_A^T + L_B ΔR^T` with small Δ, so nothing large cancels. What scores depend on besides, see
    `score_error`, counts like a pair; where queries and keys are normalised, it counts instead of theirs.

    Args:
        group: The blocks' group.
        a: The reference.
        b: The other block.
        rounded: How large a difference of some biases says nothing, see `score_tolerance`.
    """
    worst = score_error(group, a, b, rounded)
    theirs = all_sides(group, b)
    for name, circuit in all_sides(group, a).items():
        if name == QUERY_KEY and group.normed is not None:
            continue
        pairs = [(x.tall(), y.tall()) for x, y in zip(circuit, theirs[name], strict=True)]
        error = circuit_squares([x.minus(y) for x, y in pairs]).clamp(min=0)
        squares = circuit_squares([x for x, _ in pairs])
        worst = worst.maximum(_relative(squares, error).sqrt().amax((-2, -1)))
    return worst


def score_error(
    group: AttentionGroup, a: AttentionWeights, b: AttentionWeights, rounded: Mapping[str, float] | None = None
) -> Tensor:
    """Relative difference of what a head's scores depend on and no circuit holds, `(...)`; worst head.

    Tables of position biases, up to free constants; scores of no token; what latents are normalised from; and, where
    they are normalised, queries, keys and gains themselves: equal circuits don't mean equal scores there.
    """
    blocks = a.key.ndim - 3
    worst = torch.zeros(a.key.shape[:blocks], dtype=torch.float64, device=a.key.device)
    for (name, x), y in zip(_scoring(group, a).items(), _scoring(group, b).values(), strict=True):
        heads = blocks + (1 if name.startswith("key") else 2)
        gap = (x - y).flatten(heads).norm(dim=-1) - (rounded or {}).get(name, 0.0)
        error = _relative(x.flatten(heads).norm(dim=-1), gap.clamp(min=0))
        worst = worst.maximum(error.flatten(blocks).amax(-1))
    for name, x in a.tensors().items():
        if name.endswith(("_down", "_down_bias")):
            gap = x - b.tensors()[name]
            worst = worst.maximum(_relative(x.flatten(blocks).norm(dim=-1), gap.flatten(blocks).norm(dim=-1)))
    return worst


def _scoring(group: AttentionGroup, weights: AttentionWeights) -> dict[str, Tensor]:
    """What `score_error` compares, by name; the axes after those of the heads are a head's own."""
    parts = weights.tensors() if group.normed is not None else {}
    return {name: parts[name] for name in _NORMED if name in parts} | own_scores(group, weights)


def effective_bias(group: AttentionGroup, weights: AttentionWeights) -> Tensor:
    """What the output bias and a value bias that trades with it add together, `b_O + Σ b_V O^T`, `(..., d)`."""
    own = weights.output_bias
    bias = torch.zeros_like(weights.output[..., 0, 0, :, 0]) if own is None else own
    if group.value_shift and weights.value_bias is not None:
        bias = bias + torch.einsum("...gm,...gsdm->...d", weights.value_bias, weights.output)
    return bias


def bias_error(
    group: AttentionGroup, a: AttentionWeights, b: AttentionWeights, rounded: Tensor | float = 0.0
) -> Tensor:
    """Relative difference of what value and output biases add together, `(...)`.

    Args:
        group: The blocks' group.
        a: The reference.
        b: The other block.
        rounded: How large a difference says nothing, see `bias_tolerance`: the sum of large terms may be zero in one of
            two equal blocks, and is that up to their rounding in the other.
    """
    x, y = effective_bias(group, a), effective_bias(group, b)
    return _relative(x.norm(dim=-1), ((x - y).norm(dim=-1) - rounded).clamp(min=0))


def bias_rounding(group: AttentionGroup, weights: AttentionWeights, dtype: torch.dtype) -> Tensor:
    """How far storing the weights in `dtype` moves what value and output biases add together, `(...)`.

    Independent rounding errors of relative size ρ change `b_O + Σ b_V O^T` by `ρ sqrt(||b_O||² + 2 Σ_j b_j² ||o_j||²)`.
    """
    parts = [] if weights.output_bias is None else [weights.output_bias.square().sum(-1)]
    if group.value_shift and weights.value_bias is not None:
        terms = torch.einsum("...gm,...gsdm->...", weights.value_bias.square(), weights.output.square())
        parts.append(2 * terms)
    squares = sum(parts, torch.zeros_like(weights.output[..., 0, 0, 0, 0]))
    return _ROUNDING * torch.finfo(dtype).eps * squares.sqrt()


def _relative(size: Tensor, error: Tensor) -> Tensor:
    """`error / size`; of what is zero any error is infinite."""
    return torch.where(size > 0, error / size, torch.where(error > 0, torch.inf, 0.0))


@dataclass(frozen=True)
class Degeneracy:
    """Where the theorem's conditions fail in one block (arXiv 2606.17830, Theorems 2.1, 4.1 and 4.2).

    Attributes:
        rank_deficient: `(projection, head)` of every projection without full column rank.
        duplicates: Pairs of query heads with equal attention scores (similarity) circuits.
    """

    rank_deficient: tuple[tuple[str, int], ...]
    duplicates: tuple[tuple[int, int], ...]


def degeneracy(group: AttentionGroup, weights: AttentionWeights, tolerance: float = 1e-6) -> Degeneracy:
    """Check the conditions under which equal functions imply a group element, for one block.

    Args:
        group: The block's group.
        weights: One block, without leading dimensions.
        tolerance: Singular values below this share of the largest, and circuits nearer than this share of
            their norm, count as zero.
    """
    deficient: list[tuple[str, int]] = []
    for name in ("query", "key", "value", "output"):
        heads = getattr(weights, name)
        values = torch.linalg.svdvals(heads.reshape(-1, *heads.shape[-2:]))
        # Columns whose mean is left out sum to zero.
        least = values[:, -2 if group.means and name in ("query", "key") else -1]
        thin = (least <= tolerance * values[:, 0]) | (values[:, 0] == 0)
        deficient += [(name, int(i)) for i in thin.nonzero().flatten()]
    # Without values the circuits are the attention scores alone, which is what must be distinct.
    scores = replace(
        weights,
        value=torch.zeros_like(weights.value),
        output=torch.zeros_like(weights.output),
        value_bias=None,
        output_bias=None,
    )
    apart = head_costs(group, scores, scores, HeadCost.rotary).transpose(-3, -2).flatten(-2).flatten(0, 1)
    size = _score_norms(group, scores)
    near = apart <= (tolerance * torch.maximum(size.unsqueeze(0), size.unsqueeze(1))).square()
    pairs = near.triu(1).nonzero().tolist()
    return Degeneracy(tuple(deficient), tuple((int(i), int(j)) for i, j in pairs))


def _score_norms(group: AttentionGroup, weights: AttentionWeights) -> Tensor:
    """`||Q K^T||` of every query head, `(g * s)`."""
    zero = weights.map(torch.zeros_like)
    costs = head_costs(group, weights, zero, HeadCost.rotary)
    return costs[:, 0, :, 0].flatten().clamp(min=0).sqrt()
