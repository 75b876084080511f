"""Stage 2, factor by factor: the element of each that brings one block's weights nearest to another's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from isobasin.matching import normed, rotary, shared_planes, subspace
from isobasin.matching.products import with_rows
from isobasin.matching.sides import Sides
from isobasin.symmetries.bilinear import Bilinear
from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.linear import Linear
from isobasin.symmetries.normed import Normed
from isobasin.symmetries.planes import Planes
from isobasin.symmetries.shared_planes import SharedPlanes
from isobasin.symmetries.shift import Shift, ValueShift

# Of a solution by a float32 factor: each takes away six digits of what is left.
_REFINEMENTS = 4


@dataclass(frozen=True)
class Solvers:
    """How stage 2 is solved.

    Attributes:
        linear: On GL(n).
        planes: On rotated planes.
        shared: On sets of planes that turn alike.
        discrete: Whether what is left is fitted too: shifts, and all that a norm leaves.
    """

    linear: Callable[[subspace.Core], subspace.SubspaceSolution]
    planes: Callable[[rotary.PlaneProblem], Tensor]
    shared: Callable[[shared_planes.Problem], shared_planes.Solution]
    discrete: bool = True


@dataclass(frozen=True)
class Fit:
    """What was found of one factor.

    Attributes:
        parts: Of the element.
        iterations: Steps of every map, `(..., heads)`; None where nothing descends.
        converged: Whether the solver's own test was met.
        capped: Whether the condition number was cut to the limit.
        sides: The model's once they are moved, in a basis of fewer rows; None where there is none.
    """

    parts: Parts
    iterations: Tensor | None = None
    converged: Tensor | None = None
    capped: Tensor | None = None
    sides: Sides | None = None


@singledispatch
def fit(factor: Factor, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    """The nearest element of one factor; the identity of those that nothing here fits.

    Args:
        factor: Which.
        reference: The weights to reach, with leading dimensions `...`.
        model: Those that move, already moved by all factors that act before.
        solvers: How.
        max_condition: Largest condition number that a map on GL(n) may have.
    """
    batch = tuple(reference["output"].shape[:-4])
    return Fit(factor.identity(batch, reference["output"].device))


def _tall(factor: Bilinear, weights: Parts) -> tuple[Tensor, Tensor]:
    """Both sides, slots stacked into rows: one map serves all of a group's queries."""
    left, right = (x.flatten(-3, -2) for x in factor.sides(weights))
    return left, right


@fit.register
def _(factor: Linear, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    (a_left, a_right), (b_left, b_right) = _tall(factor, reference), _tall(factor, model)
    core = subspace.reduce(a_left, b_left, a_right, b_right)
    found = solvers.linear(core)
    matrix, capped = found.matrix, torch.zeros_like(found.converged)
    if math.isfinite(max_condition):
        matrix = subspace.cap_condition(core, matrix, max_condition)
        capped = (matrix != found.matrix).any(-1).any(-1)
    left, right = core.moved(matrix)
    sides = Sides(left.unsqueeze(-3), right.unsqueeze(-3), factor.width)
    return Fit({factor.part: matrix}, found.iterations, found.converged, capped, sides)


@fit.register
def _(factor: Planes, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    (a_left, a_right), (b_left, b_right) = factor.features(reference), factor.features(model)
    problem = rotary.PlaneProblem.of(a_left, b_left, a_right, b_right, factor.places)
    return Fit({factor.part: solvers.planes(problem)})


@fit.register
def _(factor: SharedPlanes, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    a, b = ([factor.sets(x) for x in _tall(factor, weights)] for weights in (reference, model))
    found = solvers.shared(shared_planes.reduce(*a, *b))
    matrix, capped = shared_planes.capped(found.matrix, max_condition)
    return Fit({factor.part: matrix}, found.iterations.amax(-1), found.converged.all(-1), capped.any(-1))


@fit.register
def _(factor: Normed, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    if not solvers.discrete:
        return _unmoved(factor, reference, model, solvers, max_condition)
    return Fit(normed.align(factor, reference, model))


@fit.register
def _(factor: Shift, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    """What makes free biases equal, and tables up to what no shift changes."""
    if not (solvers.discrete and factor.free and factor.weight in reference):
        return _unmoved(factor, reference, model, solvers, max_condition)
    return Fit({factor.part: factor.measured(reference[factor.weight] - model[factor.weight])})


@fit.register
def _(factor: ValueShift, reference: Parts, model: Parts, solvers: Solvers, max_condition: float) -> Fit:
    """`min ||c - v||² + ||e + v Ō||²`, c and e what is left between the biases, Ō the stacked output projections."""
    if not (solvers.discrete and factor.free and {"value_bias", "output_bias"} <= reference.keys()):
        return _unmoved(factor, reference, model, solvers, max_condition)
    output = model["output"].sum(-3).mT.flatten(-3, -2).mT
    gap = (reference["value_bias"] - model["value_bias"]).flatten(-2)
    rest = model["output_bias"] - reference["output_bias"]
    shift = _damped_least_squares(output, gap, rest)
    return Fit({factor.part: shift.unflatten(-1, factor.shape)})


def _damped_least_squares(matrix: Tensor, near: Tensor, target: Tensor) -> Tensor:
    """X of `min ||x - near||² + ||matrix x - target||²`, `(..., n)`.

    `(1 + M^T M) x = near + M^T target` by a float32 factor whose errors float64 residuals take away; where that doesn't
    end, as with rows of unlike sizes, by a triangular factor of both parts.

    Args:
        matrix: M, `(..., d, n)` float64.
        near: `(..., n)`.
        target: `(..., d)`.
    """
    columns = matrix.mT.float()
    products = [with_rows(x)(x) for x in columns.reshape(-1, *columns.shape[-2:])]
    normal = torch.stack(products).float().reshape(*columns.shape[:-1], -1)
    normal.diagonal(dim1=-2, dim2=-1).add_(1)
    factor, failed = torch.linalg.cholesky_ex(normal)
    right = (near + (target.unsqueeze(-2) @ matrix).squeeze(-2)).unsqueeze(-1)
    x, residual = torch.zeros_like(right), right
    for _ in range(_REFINEMENTS if bool((failed == 0).all()) else 0):
        x = x + torch.cholesky_solve(residual.float(), factor).double()
        residual = right - x - matrix.mT @ (matrix @ x)
        if bool(residual.norm() <= 1e-14 * right.norm()):
            return x.squeeze(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    both = torch.cat([identity.expand(*matrix.shape[:-2], *identity.shape), matrix], -2)
    sides = torch.cat([near, target], -1).unsqueeze(-1)
    return torch.linalg.lstsq(both, sides, driver="gels").solution.squeeze(-1)


_unmoved = fit.dispatch(Factor)
