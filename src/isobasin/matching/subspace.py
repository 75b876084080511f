"""Stage 2 on GL(n): the invertible map that brings one pair of factors onto another.

For every head, over all invertible U,

    minimise  f(U) = ||A_L - B_L U^T||² + ||A_R - B_R U^{-1}||².                              (1)

(arXiv 2606.17830 starts from orthogonal Procrustes and descends by gradient; here a second start in the
balanced gauge recovers any planted U, and a damped Newton method replaces gradient descent.) The tall factors
enter only through one triangular factorisation, so every step costs n×n work, batched over all heads of all
layers. Gram matrices of the tall factors would square the rounding and lose exact recovery.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# f below this share of ||A||² is rounding: the pair is matched exactly and there is nothing to gain.
_EXACT = 1e-26
# Steps that share one eigenbasis, conjugate-gradient steps inside one, and their relative accuracy.
_REFRESH = 8
_CG_STEPS = 8
_CG_TOLERANCE = 1e-2
# A start whose f is this many times its rival's is not followed; later, one that this many more falls like its last
# would not bring below the rival.
_CLEAR = 2.0
_HOPE = 100.0
# Two starts whose U differ by less than the root of this share are on their way to one minimum.
_SAME = 1e-3


@dataclass(frozen=True)
class Core:
    """Problem (1) after an orthogonal change of basis that both models share.

    Attributes:
        a_left, b_left: `(..., r, n)` with r ≤ 2n; `b_left` is upper triangular.
        a_right, b_right: Likewise.
    """

    a_left: Tensor
    b_left: Tensor
    a_right: Tensor
    b_right: Tensor

    def objective(self, u: Tensor) -> Tensor:
        """f(U), `(...)`."""
        left = self.a_left - self.b_left @ u.mT
        right = self.a_right - _divide(self.b_right, u)
        return left.square().sum((-2, -1)) + right.square().sum((-2, -1))

    def scale(self) -> Tensor:
        """`||A_L||² + ||A_R||²`, `(...)`."""
        return self.a_left.square().sum((-2, -1)) + self.a_right.square().sum((-2, -1))

    def __getitem__(self, index: Tensor) -> Core:
        return Core(self.a_left[index], self.b_left[index], self.a_right[index], self.b_right[index])

    def top(self) -> Core:
        """The rows that U can move, r = n: what is left out of f is constant."""
        n = self.b_left.shape[-1]
        return Core(*(x[..., :n, :] for x in vars(self).values()))


@dataclass(frozen=True)
class SubspaceSolution:
    """What a stage-2 solver found for every head.

    Attributes:
        matrix: U, `(..., n, n)` float64.
        objective: f(U), `(...)`.
        iterations: Steps taken, `(...)` int64.
        converged: Whether the solver's own test was met, `(...)` bool.
    """

    matrix: Tensor
    objective: Tensor
    iterations: Tensor
    converged: Tensor


def reduce(a_left: Tensor, b_left: Tensor, a_right: Tensor, b_right: Tensor) -> Core:
    """Replace tall `(..., rows, n)` factors by `(..., ≤2n, n)` ones with the same f.

    One triangular factor of `[B | A]` per side holds everything; no orthogonal factor is formed.
    """

    def side(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        n = b.shape[-1]
        stacked = torch.cat([b, a], dim=-1)
        if stacked.shape[-2] < n:
            stacked = torch.nn.functional.pad(stacked, (0, 0, 0, n - stacked.shape[-2]))
        r = torch.linalg.qr(stacked, mode="r").R
        return r[..., n:], r[..., :n]

    return Core(*side(a_left, b_left), *side(a_right, b_right))


def polar(x: Tensor) -> Tensor:
    """The orthogonal polar factor: argmax over orthogonal Ω of <Ω, x>."""
    u, _, vh = torch.linalg.svd(x)
    return u @ vh


def orthogonal_start(core: Core) -> Tensor:
    """The paper's start: the orthogonal U nearest in (1), polar factor of `A_L^T B_L + A_R^T B_R`."""
    return polar(core.a_left.mT @ core.b_left + core.a_right.mT @ core.b_right)


def orthogonal(core: Core) -> SubspaceSolution:
    """The paper's start, and no step from it."""
    return _still(core, orthogonal_start(core))


def balanced(core: Core) -> SubspaceSolution:
    """The nearer of the two starts, and no step from it: in closed form, and the planted map if there is one."""
    options = [_still(core, u) for u in (balanced_start(core), orthogonal_start(core))]
    first = options[0].objective.nan_to_num(torch.inf, torch.inf) <= options[1].objective
    return _still(core, torch.where(first[..., None, None], options[0].matrix, options[1].matrix))


def unmoved(core: Core) -> SubspaceSolution:
    """Leave all heads as they are: U = I."""
    *batch, _, n = core.b_left.shape
    return _still(core, torch.eye(n, dtype=core.b_left.dtype, device=core.b_left.device).expand(*batch, n, n))


def _still(core: Core, u: Tensor) -> SubspaceSolution:
    """A solution that took no steps."""
    f = core.objective(u)
    return SubspaceSolution(u, f, torch.zeros_like(f, dtype=torch.int64), torch.ones_like(f, dtype=torch.bool))


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """`(E^T, E^{-T})` of the map E that gives `L E^T` and `R E^{-1}` equal, diagonal Grams.

    With `L = Z_L R_L`, `R = Z_R R_R`, `R_L R_R^T = S Σ T^T`: `E^T = R_R^T T Σ^{-1/2}`, `E^{-T} = Σ^{-1/2} S^T R_L`;
    neither needs an inverse of a factor. Vanishing singular values are lifted to rounding level.
    """
    r_left, r_right = (torch.linalg.qr(x, mode="r").R for x in (left, right))
    s, sigma, th = torch.linalg.svd(r_left @ r_right.mT)
    floor = sigma[..., :1] * torch.finfo(sigma.dtype).eps + torch.finfo(sigma.dtype).tiny
    root = sigma.maximum(floor).rsqrt()
    return r_right.mT @ th.mT * root.unsqueeze(-2), root.unsqueeze(-1) * (s.mT @ r_left)


def balanced_start(core: Core) -> Tensor:
    """Orthogonal Procrustes between the two sides in their balanced gauges, pulled back.

    Where `A = (B_L U^T, B_R U^{-1})` for any invertible U, both gauges agree up to an orthogonal map and U is
    recovered exactly, however ill-conditioned.
    """
    to_b, undo_b = _balance(core.b_left, core.b_right)
    to_a, undo_a = _balance(core.a_left, core.a_right)
    left = (core.b_left @ to_b).mT @ (core.a_left @ to_a)
    right = (core.b_right @ undo_b.mT).mT @ (core.a_right @ undo_a.mT)
    return (to_b @ polar(left + right) @ undo_a).mT


def gauss_newton(core: Core, max_iterations: int = 100, tolerance: float = 1e-8) -> SubspaceSolution:
    """Minimise (1) by Gauss-Newton steps in a trust region, corrected for large residuals, from two starts.

    At `B'_L = B_L U^T`, `B'_R = B_R U^{-1}` with residuals `E = A - B'` and Grams `G`, the step `U <- (I + X) U` solves

        G_R X + X G_L - (S X^T + X^T S) = E_L^T B'_L - S,        S = B'_R^T E_R.                  (2)

    Without the bracket (the residual's own curvature) this is the Gauss-Newton equation, a Sylvester equation that
    two symmetric eigendecompositions solve; alone it crawls where residuals stay large, as between models trained
    apart. So it is the preconditioner of a few conjugate-gradient steps on (2), which end at the trust region's edge
    or follow negative curvature to it. A step is taken only if f falls.

    (1) is not convex: where neither start is clearly nearer, both are followed until one has no hope.

    Args:
        core: The reduced problems.
        max_iterations: Steps at most.
        tolerance: Stop where a step lowers f by less than this share of it.
    """
    shape = core.b_left.shape
    flat = Core(*(x.reshape(-1, *x.shape[-2:]) for x in vars(core).values()))
    state = _Descent(Core(*(torch.cat([x, x]) for x in vars(flat).values())), _starts(flat))
    active = state.contenders()
    for step in range(max_iterations):
        if not len(active):
            break
        if step % _REFRESH == 0:
            state.refresh_basis(active)
        active = active[_step(state, active, tolerance)]
    converged = torch.ones_like(state.f, dtype=torch.bool)
    converged[active] = False
    best = state.f.reshape(2, -1).argmin(0) * len(flat.b_left) + torch.arange(len(flat.b_left), device=state.f.device)
    return SubspaceSolution(
        state.u[best].reshape(*shape[:-2], shape[-1], shape[-1]),
        state.f[best].reshape(shape[:-2]),
        state.iterations.reshape(2, -1).amax(0).reshape(shape[:-2]),
        converged[best].reshape(shape[:-2]),
    )


def cap_condition(core: Core, u: Tensor, limit: float) -> Tensor:
    """U with condition number at most `limit`: singular values clamped about their geometric mean.

    The orthogonal start, of condition 1, replaces it where that has the lower objective.
    """
    sigma = torch.linalg.svdvals(u)
    over = sigma[..., 0] > sigma[..., -1] * limit
    if not over.any():
        return u
    problem = core[over]
    left, sigma, right = torch.linalg.svd(u[over])
    middle, half = sigma.log().mean(-1, keepdim=True), 0.5 * math.log(limit)
    clamped = left * sigma.log().clamp(middle - half, middle + half).exp().unsqueeze(-2) @ right
    plain = orthogonal_start(problem)
    lower = problem.objective(clamped) <= problem.objective(plain)
    result = u.clone()
    result[over] = torch.where(lower[..., None, None], clamped, plain)
    return result


def _starts(core: Core) -> Tensor:
    """Both starts of every problem, `(2b, n, n)`."""
    return torch.cat([balanced_start(core), orthogonal_start(core)])


class _Descent:
    """Where every problem of a batch stands; its second half has the same problems from the other start."""

    def __init__(self, core: Core, u: Tensor) -> None:
        self.core, self.u, self.f = core.top(), u, core.objective(u).nan_to_num(torch.inf, torch.inf)
        self.floor = core.scale() * _EXACT
        self.left, self.right = self.moved(u)
        # All of f but what the top rows hold can't be moved: it is computed once.
        self.constant = (self.f - self.core.objective(u)).nan_to_num(0.0)
        self.radius = torch.ones_like(self.f)
        self.iterations = torch.zeros_like(self.f, dtype=torch.int64)
        self.basis = torch.zeros(2, *u.shape, dtype=u.dtype, device=u.device)

    def moved(self, u: Tensor, active: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """`(B'_L, B'_R)` at U."""
        return self.core.b_left[active] @ u.mT, _divide(self.core.b_right[active], u)

    def rivals(self) -> Tensor:
        """The f of the same problem from the other start."""
        return self.f.roll(len(self.f) // 2)

    def merged(self, active: Tensor) -> Tensor:
        """Which active problems have come to where the same problem from the balanced start is."""
        half = len(self.f) // 2
        here, there = self.u[active], self.u[active % half]
        return (active >= half) & (_squares(here - there) <= _SAME * _squares(there))

    def contenders(self) -> Tensor:
        """What is worth following: not exact, nor far above its rival, nor above an exact one."""
        rivals = self.rivals()
        return ((self.f > self.floor) & (rivals > self.floor) & (self.f <= _CLEAR * rivals)).nonzero().squeeze(-1)

    def refresh_basis(self, active: Tensor) -> None:
        """Eigenvectors of `(G_R, G_L)`; they serve several steps, since the Grams change little."""
        left, right = self.left[active], self.right[active]
        self.basis[:, active] = torch.linalg.eigh(torch.stack([right.mT @ right, left.mT @ left])).eigenvectors


def _step(state: _Descent, active: Tensor, tolerance: float) -> Tensor:
    """One step of the active problems, in place; returns which of them go on."""
    left, right = state.left[active], state.right[active]
    u, f, radius, core = state.u[active], state.f[active], state.radius[active], state.core[active]
    x, predicted, at_edge = _direction(core, left, right, state.basis[:, active], radius)
    trial = u + x @ u
    left, right = state.moved(trial, active)
    value = _squares(core.a_left - left) + _squares(core.a_right - right) + state.constant[active]
    value = value.nan_to_num(torch.inf, torch.inf)
    gain = f - value
    better, ratio = gain > 0, gain / predicted.clamp(min=torch.finfo(f.dtype).tiny)
    taken = active[better]
    state.u[taken], state.f[taken] = trial[better], value[better]
    state.left[taken], state.right[taken] = left[better], right[better]
    state.iterations[active] += 1
    shrunk = 0.3 * torch.minimum(_squares(x).sqrt(), radius)
    radius = torch.where(ratio < 0.25, shrunk, torch.where((ratio > 0.75) & at_edge, 2 * radius, radius))
    state.radius[active] = radius
    done = better & (gain <= tolerance * f) & (ratio > 0.25)
    stuck = ~better & ((radius < 1e-9) | (predicted <= 1e-12 * f))
    hopeless = better & (value - state.rivals()[active] > _HOPE * gain)
    return ~(done | stuck | hopeless | state.merged(active) | (value <= state.floor[active]))


def _direction(core: Core, left: Tensor, right: Tensor, basis: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X of (2), the fall of f that the quadratic model predicts for it, and whether it ends at the edge."""
    p_right, p_left = basis
    s = right.mT @ (core.a_right - right)
    slope = p_right.mT @ ((core.a_left - left).mT @ left - s) @ p_left
    s, turn = p_right.mT @ s @ p_left, p_right.mT @ p_left
    right, left = right @ p_right, left @ p_left
    gram_right, gram_left = right.mT @ right, left.mT @ left
    curvature = _diagonal(gram_right).unsqueeze(-1) + _diagonal(gram_left).unsqueeze(-2)
    # Directions without curvature (rank-deficient heads) must not be divided by zero.
    lift = 1e-9 * curvature.mean((-2, -1), keepdim=True) + torch.finfo(curvature.dtype).tiny

    def hessian(x: Tensor) -> Tensor:
        # In the eigenbases, `turn` apart, S X^T is s x^T turn and X^T S is turn x^T s.
        image = torch.baddbmm(x @ gram_left, gram_right, x)
        image = torch.baddbmm(image, s, x.mT @ turn, alpha=-1)
        return torch.baddbmm(image, turn, x.mT @ s, alpha=-1)

    x, at_edge = _truncated_cg(hessian, slope, curvature + lift, radius)
    return p_right @ x @ p_left.mT, 2 * _dot(slope, x) - _dot(x, hessian(x)), at_edge


def _truncated_cg(
    matrix: Callable[[Tensor], Tensor], slope: Tensor, preconditioner: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """A few conjugate-gradient steps on `matrix(x) = slope` inside `||x|| <= radius`, each problem for itself.

    A problem stops at its tolerance, at the edge, or where a direction is concave: then at the edge along it
    (Steihaug's method).

    Returns:
        x, and whether it is at the edge.
    """
    x, residual = torch.zeros_like(slope), slope.clone()
    z = p = residual / preconditioner
    energy = first = _dot(residual, z)
    alive = energy > 0
    at_edge = torch.zeros_like(alive)
    for _ in range(_CG_STEPS):
        image = matrix(p)
        bend, xx, xp, pp = _dot(p, image), _squares(x), _dot(x, p), _squares(p)
        length = energy / bend
        leaves = (bend <= 1e-12 * pp) | (xx + 2 * length * xp + length.square() * pp >= radius.square())
        to_edge = (-xp + (xp.square() + pp * (radius.square() - xx)).clamp(min=0).sqrt()) / pp
        step = torch.where(alive, torch.where(leaves, to_edge, length), 0.0)[:, None, None]
        x.addcmul_(step, p)
        residual.addcmul_(step, image, value=-1)
        at_edge |= alive & leaves
        z = residual / preconditioner
        next_energy = _dot(residual, z)
        alive = alive & ~leaves & (next_energy > _CG_TOLERANCE**2 * first)
        if not alive.any():
            break
        p = torch.addcmul(z, torch.where(alive, next_energy / energy, 0.0)[:, None, None], p)
        energy = torch.where(alive, next_energy, energy)
    return x, at_edge


def _divide(x: Tensor, u: Tensor) -> Tensor:
    """`x U^{-1}`; not finite, instead of an error, where U is singular, so that no step to it is taken."""
    return torch.linalg.solve_ex(u, x, left=False).result


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of every pair of matrices, `(b)`."""
    return (x.flatten(1).unsqueeze(-2) @ y.flatten(1).unsqueeze(-1)).flatten()


def _squares(x: Tensor) -> Tensor:
    return _dot(x, x)


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)
