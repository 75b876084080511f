"""Stage 2 on planes that turn alike: the complex matrix that brings one set of m planes onto another.

For every set, with complex columns L and R of the reference (A) and the model (B), over all invertible W = U^T,

    minimise  f(W) = ||A_L - B_L W||² + ||A_R - B_R W^{-H}||²,                                        (1)

which for m = 1 is the problem of one plane (`rotary`), and over the reals that of GL(n) (`subspace`) for matrices that
commute with the quarter turn of all planes. With `L' = B_L W`, `R' = B_R W^{-H}`, residuals E and Grams G of the
primed, damped Gauss-Newton steps `W <- W exp(X)` solve the Sylvester equation

    G_L X + X G_R = L'^H E_L - E_R^H R',

each taken only if f falls. They begin at three places, of which the lowest end is kept: least squares of the left
sides, the unitary Procrustes map, and that between both balanced gauges, which recovers any planted map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.matching.subspace import polar
from isobasin.symmetries.bilinear import balance
from isobasin.symmetries.loose import Loose

_STEPS = 500
_TOLERANCE = 1e-12
# f below this share of ||A||² is rounding.
_EXACT = 1e-26


@dataclass(frozen=True)
class Problem:
    """Problem (1) of every set, `(..., sets, rows, m)` each, rows reduced by unitary maps that both models share."""

    a_left: Tensor
    a_right: Tensor
    b_left: Tensor
    b_right: Tensor

    def moved(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """`B_L W` and `B_R W^{-H}`."""
        return self.b_left @ w, torch.linalg.solve_ex(w.mH, self.b_right, left=False).result

    def objective(self, w: Tensor) -> Tensor:
        """f, `(..., sets)`; infinite where W has no inverse."""
        left, right = self.moved(w)
        return (_square(self.a_left - left) + _square(self.a_right - right)).nan_to_num(torch.inf, torch.inf)


@dataclass(frozen=True)
class Solution:
    """What was found of every set.

    Attributes:
        matrix: U, `(..., sets, m, m)` complex128.
        iterations: Steps taken, `(..., sets)`.
        converged: Whether the last steps gained nothing.
    """

    matrix: Tensor
    iterations: Tensor
    converged: Tensor


def reduce(a_left: Tensor, a_right: Tensor, b_left: Tensor, b_right: Tensor) -> Problem:
    """The same problem with at most 2m rows: those of the triangular factors of `[B | A]`."""

    def side(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        b, a = torch.linalg.qr(torch.cat([b, a], -1), mode="r").R.split(b.shape[-1], -1)
        return a, b

    (left, moved_left), (right, moved_right) = side(a_left, b_left), side(a_right, b_right)
    return Problem(left, right, moved_left, moved_right)


def align(problem: Problem) -> Solution:
    """Descent from three starts."""
    least_squares = torch.linalg.pinv(problem.b_left) @ problem.a_left
    starts = torch.stack([least_squares, _unitary(problem), _balanced(problem)])
    w = torch.where(problem.objective(starts).isfinite()[..., None, None], starts, starts[1])
    found = _descend(problem, w)
    best = problem.objective(found.matrix.mT).argmin(0, keepdim=True)

    def pick(x: Tensor) -> Tensor:
        index = best.reshape(best.shape + (1,) * (x.ndim - best.ndim)).expand(1, *x.shape[1:])
        return x.gather(0, index).squeeze(0)

    return Solution(*(pick(x) for x in vars(found).values()))


def balanced(problem: Problem) -> Solution:
    """The nearer of the two starts in closed form that serve far pairs."""
    starts = torch.stack([_unitary(problem), _balanced(problem)])
    nearer = problem.objective(starts).argmin(0)[..., None, None]
    return _still(torch.where(nearer == 1, starts[1], starts[0]))


def unitary(problem: Problem) -> Solution:
    """The nearest unitary map."""
    return _still(_unitary(problem))


def unmoved(problem: Problem) -> Solution:
    """The identity."""
    return _still(torch.eye(problem.a_left.shape[-1]).to(problem.a_left).expand_as(_unitary(problem)))


def capped(matrix: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Maps whose condition number is at most the limit, the smallest singular values raised; and which were cut."""
    u, sizes, vh = torch.linalg.svd(matrix)
    cut = sizes[..., -1] * limit < sizes[..., 0]
    raised = u * sizes.clamp(min=sizes[..., :1] / limit).unsqueeze(-2) @ vh
    return torch.where(cut[..., None, None], raised, matrix), cut


def _still(w: Tensor) -> Solution:
    count = torch.zeros(w.shape[:-2], dtype=torch.int64, device=w.device)
    return Solution(w.mT.contiguous(), count, count == 0)


def _descend(problem: Problem, w: Tensor) -> Solution:
    """Damped Gauss-Newton steps from given places, all at once."""
    f = problem.objective(w)
    damping = torch.full_like(f, 1e-3)
    count, done = torch.zeros_like(f, dtype=torch.int64), torch.zeros_like(f, dtype=torch.bool)
    least = _EXACT * (_square(problem.a_left) + _square(problem.a_right))
    still = torch.zeros_like(count)
    for _ in range(_STEPS):
        trial = w @ torch.matrix_exp(_step(problem, w, damping))
        value = problem.objective(trial)
        falls = (value < f) & ~done
        # Small gains count as none only after several, since a damped step gains little by itself.
        small = ~falls | (f - value <= _TOLERANCE * f)
        still = torch.where(small, still + 1, 0)
        w, f = torch.where(falls[..., None, None], trial, w), torch.where(falls, value, f)
        damping = torch.where(falls, damping / 5, damping * 5).clamp(1e-12, 1e12)
        count = count + (~done).long()
        done = done | (f <= least) | (still >= 12)
        if done.all():
            break
    return Solution(w.mT.contiguous(), count, done)


def _step(problem: Problem, w: Tensor, damping: Tensor) -> Tensor:
    """X of the damped Sylvester equation."""
    left, right = problem.moved(w)
    slope = left.mH @ (problem.a_left - left) - (problem.a_right - right).mH @ right
    (lower, p), (upper, q) = (torch.linalg.eigh(x.mH @ x) for x in (left, right))
    level = lower.unsqueeze(-1) + upper.unsqueeze(-2)
    level = level + (damping * level.amax((-2, -1)))[..., None, None]
    return p @ ((p.mH @ slope @ q) / level.clamp(min=torch.finfo(torch.float64).tiny)) @ q.mH


def _square(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()).square().sum((-3, -2, -1))


def _unitary(problem: Problem) -> Tensor:
    return polar(problem.b_left.mH @ problem.a_left + problem.b_right.mH @ problem.a_right)


def _balanced(problem: Problem) -> Tensor:
    """Procrustes between both balanced gauges, pulled back."""
    (to_a, a), (to_b, b) = (
        _gauge(left, right) for left, right in ((problem.a_left, problem.a_right), (problem.b_left, problem.b_right))
    )
    turn = polar(b[0].mH @ a[0] + b[1].mH @ a[1])
    return torch.linalg.solve_ex(to_a, to_b @ turn, left=False).result


def _gauge(left: Tensor, right: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """T of the balanced gauge, `L T` and `R T^{-H}` (`balance`), and both sides after it."""
    to = balance(left, right, Loose(0.0)).mT
    return to, (left @ to, torch.linalg.solve_ex(to.mH, right, left=False).result)
