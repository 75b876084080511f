"""From the weights of two attention blocks to the group element that brings one onto the other.

Stage 1 picks the head permutation, stage 2 the continuous map of every head, and the free bias shifts follow by
least squares. Everything is batched over heads and over the leading dimensions (layers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isobasin.choices import HeadCost, Method
from isobasin.matching import heads, latents, paper, rotary, shared_planes, subspace
from isobasin.matching.fits import Solvers, fit
from isobasin.matching.inputs import Moments, weighted
from isobasin.matching.sides import Sides
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AXES, AttentionWeights

# Of heads and latents in turn, at most; one that lowers the squared distance by a smaller share is the last.
_SWEEPS = 100
_FALL = 1e-3
# Below this share of the reference's squared norm there is only rounding to gain.
_ROUNDING = 1e-24


_SOLVERS = {
    Method.gauss_newton: Solvers(subspace.gauss_newton, rotary.align_planes, shared_planes.align),
    Method.paper: Solvers(paper.gradient_descent, paper.brent_planes, shared_planes.align),
    Method.balanced: Solvers(subspace.balanced, rotary.align_planes, shared_planes.balanced),
    Method.orthogonal: Solvers(subspace.orthogonal, rotary.turn_planes, shared_planes.unitary),
    Method.heads: Solvers(subspace.unmoved, rotary.unmoved_planes, shared_planes.unmoved, discrete=False),
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
        sides: Of moved heads by the factor that moved them, in a basis of fewer rows, where matching had one.
    """

    element: AttentionElement
    moved: AttentionWeights
    iterations: Tensor
    converged: Tensor
    capped: Tensor
    sides: Mapping[str, Sides] = field(default_factory=lambda: {})


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
    outer, inner = heads.head_permutation(group, a, b, head_cost) if order is None else order
    found = align_heads(group, a, b, outer, inner, method=method, max_condition=max_condition)
    return found if moments is None else replace(found, moved=group.act(found.element, model), sides={})


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
    if not latents.of(group) or not _SOLVERS[method].discrete:
        return _align_heads(group, reference, model, outer, inner, method, max_condition)
    batch = tuple(outer.shape[:-1])
    turn = group.identity(batch, outer.device).having(latents.fit(group, reference, model))
    least = _ROUNDING * size(reference).square()
    before, best = torch.full_like(least, math.inf), None
    for _ in range(_SWEEPS):
        turned = group.act(turn, model)
        found = _align_heads(group, reference, turned, outer, inner, method, max_condition)
        found = replace(found, element=group.compose(found.element, turn))
        after = distance(reference, found.moved).square()
        nearer = after < (1 - _FALL) * before
        best = found if best is None else _nearest(nearer, found, best)
        if not (nearer & (after > least)).any():
            break
        before = torch.where(nearer, after, before)
        own = group.identity(batch, outer.device)
        more = own.having(latents.fit(group, reference, best.moved, readers=True))
        kept = own.having(latents.kept(group, best.element))
        turn = group.compose(more, kept)
    assert best is not None
    # To the last bit what the element makes of the model, not of what earlier ones made of that.
    return replace(best, moved=group.act(best.element, model), sides={})


def _nearest(nearer: Tensor, found: Match, best: Match) -> Match:
    """Of two matches, for every block of a stack the nearer one."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(nearer.reshape(nearer.shape + (1,) * (x.ndim - nearer.ndim)), x, y)

    def picked(x: dict[str, Tensor], y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: pick(part, y[name]) for name, part in x.items()}

    return Match(
        AttentionElement(picked(found.element.tensors(), best.element.tensors())),
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
    """Stage 2 of all heads, with latents, if there are any, as they are: one factor after another."""
    heads, *factors = group.factors
    element = group.identity(tuple(outer.shape[:-1]), outer.device)
    element = element.having({"outer": outer, "inner": inner})
    theirs, moved = reference.tensors(), heads.act(element.tensors(), model.tensors())
    count = torch.zeros(outer.shape[:-1], dtype=torch.int64, device=outer.device)
    converged, capped = count == 0, count != 0
    sides: dict[str, Sides] = {}
    for factor in factors:
        found = fit(factor, theirs, moved, _SOLVERS[method], max_condition)
        moved, element = factor.act(found.parts, moved), element.having(found.parts)
        if found.iterations is not None and found.converged is not None and found.capped is not None:
            count = count.maximum(found.iterations.amax(-1))
            converged, capped = converged & found.converged.all(-1), capped | found.capped.any(-1)
        if found.sides is not None:
            sides |= dict.fromkeys(found.parts, found.sides)
    return Match(element, AttentionWeights(**moved), count, converged, capped, sides)


def distance(a: AttentionWeights, b: AttentionWeights) -> Tensor:
    """Frobenius distance of all weights and biases of each block, `(...)`."""
    others, blocks = b.tensors(), a.query.ndim - 4
    return _whole([_apart(name, x, others[name], blocks) for name, x in a.tensors().items()])


def size(weights: AttentionWeights) -> Tensor:
    """Frobenius norm of all weights and biases of each block, `(...)`."""
    blocks = weights.query.ndim - 4
    return _whole([_norm(x, blocks) for x in weights.tensors().values()])


def _apart(name: str, x: Tensor, y: Tensor, blocks: int) -> Tensor:
    """Norm of the difference of two weights of each block.

    On a CPU, where new memory costs more than the norm, a head at a time; elsewhere a call costs more.
    """
    heads = blocks + len(AXES.get(name, ()))
    if heads == blocks or x.device.type != "cpu":
        return _norm(x - y, blocks)
    pairs = zip(x.flatten(0, heads - 1), y.flatten(0, heads - 1), strict=True)
    norms = torch.stack([torch.linalg.vector_norm(one - other) for one, other in pairs])
    return _norm(norms.reshape(x.shape[:heads]), blocks)


def _norm(x: Tensor, blocks: int) -> Tensor:
    """Norm over all axes but the first ones, which count blocks."""
    return torch.linalg.vector_norm(x, dim=tuple(range(blocks, x.ndim)))


def _whole(norms: Sequence[Tensor]) -> Tensor:
    """Norm of all weights together from that of each."""
    return torch.linalg.vector_norm(torch.stack(list(norms)), dim=0)
