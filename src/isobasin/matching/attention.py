"""From the weights of two attention blocks to the group element that brings one onto the other.

Stage 1 picks the head permutation, stage 2 the continuous map of every head, and the free bias shifts follow by
least squares. Everything is batched over heads and over the leading dimensions (layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.choices import HeadCost, Method
from isobasin.matching import heads, latents, normed, paper, rotary, subspace
from isobasin.matching.factors import Factors, query_key_factors, rotary_factors, value_output_factors
from isobasin.matching.inputs import Moments, weighted
from isobasin.symmetries import attention, bilinear, latent, tables
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights

# Of heads and latents in turn, at most; one that lowers the squared distance by a smaller share is the last.
_SWEEPS = 100
_FALL = 1e-3
# Below this share of the reference's squared norm there is only rounding to gain.
_ROUNDING = 1e-24


@dataclass(frozen=True)
class _Solvers:
    linear: Callable[[subspace.Core], subspace.SubspaceSolution]
    planes: Callable[[rotary.PlaneProblem], Tensor]
    shifts: bool = True


_SOLVERS = {
    Method.gauss_newton: _Solvers(subspace.gauss_newton, rotary.align_planes),
    Method.paper: _Solvers(paper.gradient_descent, paper.brent_planes),
    Method.balanced: _Solvers(subspace.balanced, rotary.align_planes),
    Method.orthogonal: _Solvers(subspace.orthogonal, rotary.turn_planes),
    Method.heads: _Solvers(subspace.unmoved, rotary.unmoved_planes, shifts=False),
}


@dataclass(frozen=True)
class Match:
    """What matching found for a stack of blocks.

    Attributes:
        element: Brings the model onto the reference.
        moved: The model's weights after it.
        iterations: Most steps that any head's stage 2 took, `(...)`.
        converged: Whether every head's solver met its own test, `(...)`.
        capped: Whether any map's condition number was cut to the limit, `(...)`.
    """

    element: AttentionElement
    moved: AttentionWeights
    iterations: Tensor
    converged: Tensor
    capped: Tensor


def match(
    group: AttentionGroup,
    reference: AttentionWeights,
    model: AttentionWeights,
    *,
    order: tuple[Tensor, Tensor] | None = None,
    moments: Moments | None = None,
    method: Method = Method.gauss_newton,
    head_cost: HeadCost = HeadCost.rotary,
    max_condition: float = math.inf,
) -> Match:
    """Find the element of `group` that brings `model` nearest to `reference`.

    Minimises, head by head, `||Q_A - Q_B U^T||² + ||K_A - K_B U^{-1}||²` and the same for V and O, after the head
    permutation of least circuit distance (arXiv 2606.17830, section 3).

    Args:
        group: The blocks' group.
        reference: Float64 weights with leading dimensions `...` (layers) or none.
        model: Weights of the same shapes.
        order: The head permutation, outer and inner, where it is known; None to find it.
        moments: Of the reference's inputs, where distances are to be as they see them (`matching.inputs`).
        method: Stage-2 solver.
        head_cost: What stage 1 compares.
        max_condition: Largest condition number that U and W on GL(n) may have.
    """
    a, b = (reference, model) if moments is None else (weighted(w, moments) for w in (reference, model))
    outer, inner = head_permutation(group, a, b, head_cost) if order is None else order
    found = align_heads(group, a, b, outer, inner, method=method, max_condition=max_condition)
    return found if moments is None else replace(found, moved=attention.act(group, found.element, model))


def head_permutation(
    group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights, head_cost: HeadCost = HeadCost.rotary
) -> tuple[Tensor, Tensor]:
    """Stage 1 (`heads.assign`); the identity where the group permutes no heads."""
    if not group.permuted:
        fixed = attention.identity(group, tuple(reference.key.shape[:-3]), reference.key.device)
        return fixed.outer, fixed.inner
    return heads.assign(heads.head_costs(group, reference, model, head_cost))


def align_heads(
    group: AttentionGroup,
    reference: AttentionWeights,
    model: AttentionWeights,
    outer: Tensor,
    inner: Tensor,
    *,
    method: Method = Method.gauss_newton,
    max_condition: float = math.inf,
) -> Match:
    """Stage 2 after a given head permutation; arguments as `match`.

    In latent attention heads and latents are matched in turn until the distance stops falling, from the maps of the
    latents that what writes them tells.
    """
    if group.latent is None or not _SOLVERS[method].shifts:
        return _align_heads(group, reference, model, outer, inner, method, max_condition)
    batch = tuple(outer.shape[:-1])
    turn = replace(attention.identity(group, batch, outer.device), latent=latents.fit(group.latent, reference, model))
    least = _ROUNDING * distance(reference, reference.map(torch.zeros_like)).square()
    before, best = torch.full_like(least, math.inf), None
    for _ in range(_SWEEPS):
        turned = attention.act(group, turn, model)
        found = _align_heads(group, reference, turned, outer, inner, method, max_condition)
        found = replace(found, element=attention.compose(group, found.element, turn))
        after = distance(reference, found.moved).square()
        nearer = after < (1 - _FALL) * before
        best = found if best is None else _nearest(nearer, found, best)
        if not (nearer & (after > least)).any():
            break
        before = torch.where(nearer, after, before)
        assert best.element.latent is not None
        more = latents.fit(group.latent, reference, best.moved, readers=True)
        turn = replace(turn, latent=latent.compose(more, best.element.latent))
    assert best is not None
    return best


def _nearest(nearer: Tensor, found: Match, best: Match) -> Match:
    """Of two matches, for every block of a stack the nearer one."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(nearer.reshape(nearer.shape + (1,) * (x.ndim - nearer.ndim)), x, y)

    def picked(x: dict[str, Tensor], y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: pick(part, y[name]) for name, part in x.items()}

    return Match(
        AttentionElement.from_tensors(picked(found.element.tensors(), best.element.tensors())),
        AttentionWeights(**picked(found.moved.tensors(), best.moved.tensors())),
        pick(found.iterations, best.iterations),
        pick(found.converged, best.converged),
        pick(found.capped, best.capped),
    )


def _align_heads(
    group: AttentionGroup,
    reference: AttentionWeights,
    model: AttentionWeights,
    outer: Tensor,
    inner: Tensor,
    method: Method,
    max_condition: float,
) -> Match:
    """Stage 2 of all heads, with latents, if there are any, as they are."""
    permuted = attention.permute(model, outer, inner)
    solvers = _SOLVERS[method]
    solved = [
        _align_pair(pair, factors(group, reference).tall(), factors(group, permuted).tall(), solvers, max_condition)
        for pair, factors in (
            *([] if group.norm else [(group.query_key, query_key_factors)]),
            *([(group.rotary, rotary_factors)] if group.latent else []),
            (group.value_output, value_output_factors),
        )
    ]
    batch = tuple(outer.shape[:-1])
    start = attention.identity(group, batch, outer.device)
    element = replace(start, outer=outer, inner=inner, value_output=solved[-1].element)
    if start.latent is not None:
        element = replace(element, latent=replace(start.latent, rotary=solved[1].element.planes.squeeze(-2)))
    if group.norm is None:
        element = replace(element, query_key=solved[0].element)
    elif solvers.shifts:
        a, b = (query_key_factors(group, weights).tall() for weights in (reference, permuted))
        query_key, trades = normed.align(group, a, b, reference, permuted)
        element = replace(element, query_key=query_key, trades=trades)
        query, key = normed.signs(element, reference, attention.act(group, element, model))
        element = replace(element, query_signs=query, key_signs=key)
    if solvers.shifts:
        element = _with_shifts(group, reference, model, element)
    moved = attention.act(group, element, model)
    return Match(
        element,
        moved,
        torch.stack([s.iterations.amax(-1) for s in solved]).amax(0),
        torch.stack([s.converged.all(-1) for s in solved]).all(0),
        torch.stack([s.capped.any(-1) for s in solved]).any(0),
    )


@dataclass(frozen=True)
class _PairSolution:
    element: BilinearElement
    iterations: Tensor
    converged: Tensor
    capped: Tensor


def _align_pair(group: BilinearGroup, a: Factors, b: Factors, solvers: _Solvers, max_condition: float) -> _PairSolution:
    """Stage 2 of one kind of pair; heads are the last batch dimension."""
    element = bilinear.identity(group, tuple(b.left.shape[:-2]), b.left.device)
    count = torch.zeros(b.left.shape[:-2], dtype=torch.int64, device=b.left.device)
    converged, capped = count == 0, count != 0
    if group.planes:
        problem = rotary.PlaneProblem.of(a.left_planes, b.left_planes, a.right_planes, b.right_planes)
        element = replace(element, planes=solvers.planes(problem))
    if group.linear:
        core = subspace.reduce(a.left, b.left, a.right, b.right)
        solution = solvers.linear(core)
        count, converged = solution.iterations, solution.converged
        matrix = solution.matrix
        if math.isfinite(max_condition):
            matrix = subspace.cap_condition(core, matrix, max_condition)
            capped = (matrix != solution.matrix).any(-1).any(-1)
        element = replace(element, matrix=matrix)
    return _PairSolution(element, count, converged, capped)


def _with_shifts(
    group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights, element: AttentionElement
) -> AttentionElement:
    """The element with the free shifts that bring the biases nearest.

    κ makes the free key biases equal, and tables of position biases move by the means of what they differ by. v solves
    `min ||c - v||² + ||e + v Ō||²`, where c and e are what the value and output biases still differ by and `Ō` stacks
    the output projections of all heads.
    """
    moved = attention.act(group, element, model)
    if group.key_shift and reference.key_bias is not None and moved.key_bias is not None:
        linear = list(group.query_key.linear)
        element = replace(element, key_shift=(reference.key_bias - moved.key_bias)[..., linear])
    if reference.table is not None and moved.table is not None:
        element = replace(element, table_shift=tables.means(group, reference.table - moved.table))
    if group.value_shift and reference.value_bias is not None and reference.output_bias is not None:
        assert moved.value_bias is not None
        assert moved.output_bias is not None
        output = moved.output.sum(-3).mT.flatten(-3, -2).mT
        gap = (reference.value_bias - moved.value_bias).flatten(-2)
        rest = moved.output_bias - reference.output_bias
        # By a triangular factor of both parts: Gram matrices of rows of unlike sizes are singular up to rounding.
        identity = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
        both = torch.cat([identity.expand(*output.shape[:-2], *identity.shape), output], -2)
        shift = torch.linalg.lstsq(both, torch.cat([gap, rest], -1).unsqueeze(-1), driver="gels").solution.squeeze(-1)
        element = replace(element, value_shift=shift.unflatten(-1, (group.groups, -1)))
    return element


def distance(a: AttentionWeights, b: AttentionWeights) -> Tensor:
    """Frobenius distance of all weights and biases of each block, `(...)`."""
    blocks = a.query.ndim - 4
    squares = [(t - getattr(b, name)).square().flatten(blocks).sum(-1) for name, t in a.tensors().items()]
    return torch.stack(squares).sum(0).sqrt()
