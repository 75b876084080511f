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
_REFRESH = 5
_CG_STEPS = 8
_CG_TOLERANCE = 1e-2


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
    """Minimise (1) by damped Gauss-Newton, corrected for large residuals, from the better of two starts.

    At `B'_L = B_L U^T`, `B'_R = B_R U^{-1}` with residuals `E = A - B'` and Grams `G`, the step `U <- (I + X) U` solves

        G_R X + X G_L + μX - (S X^T + X^T S) = E_L^T B'_L - S,        S = B'_R^T E_R.               (2)

    Without the bracket (the residual's own curvature) this is the Gauss-Newton equation, a Sylvester equation that
    two symmetric eigendecompositions solve; alone it crawls where residuals stay large, as between models trained
    apart. So it is the preconditioner of a few conjugate-gradient steps on (2), cut at negative curvature. A step
    is taken only if f falls; μ follows the ratio of the fall to the one predicted.

    Args:
        core: The reduced problems.
        max_iterations: Steps at most.
        tolerance: Stop where a step lowers f by less than this share of it.
    """
    shape = core.b_left.shape
    flat = Core(*(x.reshape(-1, *x.shape[-2:]) for x in vars(core).values()))
    u, f = _better_start(flat)
    # All of f but what the top rows hold can't be moved: it is computed once.
    top = flat.top()
    state = _Descent(top, f - top.objective(u), flat.scale() * _EXACT, u, f)
    active = (f > state.floor).nonzero().squeeze(-1)
    for iteration in range(max_iterations):
        if not len(active):
            break
        if iteration % _REFRESH == 0:
            state.refresh_basis(active)
        active = active[_step(state, active, tolerance)]
    converged = torch.ones_like(f, dtype=torch.bool)
    converged[active] = False
    return SubspaceSolution(
        state.u.reshape(*shape[:-2], shape[-1], shape[-1]),
        state.f.reshape(shape[:-2]),
        state.iterations.reshape(shape[:-2]),
        converged.reshape(shape[:-2]),
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


class _Descent:
    """Where every problem of a batch stands."""

    def __init__(self, core: Core, constant: Tensor, floor: Tensor, u: Tensor, f: Tensor) -> None:
        self.core, self.constant, self.floor, self.u, self.f = core, constant, floor, u, f
        self.damping = torch.full_like(f, 1e-2)
        self.iterations = torch.zeros_like(f, dtype=torch.int64)
        self.basis = torch.zeros(2, *u.shape, dtype=u.dtype, device=u.device)

    def moved(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """`(B'_L, B'_R)`."""
        core, u = self.core[active], self.u[active]
        return core.b_left @ u.mT, _divide(core.b_right, u)

    def refresh_basis(self, active: Tensor) -> None:
        """Eigenvectors of `(G_R, G_L)`; they serve several steps, since the Grams change little."""
        left, right = self.moved(active)
        self.basis[:, active] = torch.linalg.eigh(torch.stack([right.mT @ right, left.mT @ left])).eigenvectors


def _better_start(core: Core) -> tuple[Tensor, Tensor]:
    starts = torch.stack([balanced_start(core), orthogonal_start(core)])
    values = torch.stack([core.objective(u) for u in starts]).nan_to_num(torch.inf, torch.inf)
    best = values.argmin(0)
    each = torch.arange(len(best), device=best.device)
    return starts[best, each], values[best, each]


def _step(state: _Descent, active: Tensor, tolerance: float) -> Tensor:
    """One damped step of the active problems, in place; returns which of them go on."""
    u, f, damping, constant = state.u[active], state.f[active], state.damping[active], state.constant[active]
    x, predicted = _direction(state, active, damping)
    trial = u + x @ u
    value = (state.core[active].objective(trial) + constant).nan_to_num(torch.inf)
    gain = f - value
    better, ratio = gain > 0, gain / predicted.clamp(min=torch.finfo(f.dtype).tiny)
    taken = active[better]
    state.u[taken], state.f[taken] = trial[better], value[better]
    state.iterations[active] += 1
    eased = torch.where(ratio > 0.75, damping * 0.4, torch.where(ratio < 0.25, damping * 3 + 1e-3, damping))
    state.damping[active] = torch.where(better, eased, damping * 4 + 1e-2)
    done = better & (gain <= tolerance * f) & (ratio > 0.25)
    stuck = ~better & ((damping > 1e4) | (predicted <= 1e-12 * f))
    return ~(done | stuck | (value <= state.floor[active]))


def _direction(state: _Descent, active: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """X of (2) and the fall of f that the quadratic model predicts for it, by preconditioned CG."""
    core, (p_right, p_left) = state.core[active], state.basis[:, active]
    left, right = state.moved(active)
    s = right.mT @ (core.a_right - right)
    slope = p_right.mT @ ((core.a_left - left).mT @ left - s) @ p_left
    s, turn = p_right.mT @ s @ p_left, p_right.mT @ p_left
    right, left = right @ p_right, left @ p_left
    gram_right, gram_left = right.mT @ right, left.mT @ left
    curvature = _diagonal(gram_right).unsqueeze(-1) + _diagonal(gram_left).unsqueeze(-2)
    lift = damping * curvature.mean((-2, -1)) + torch.finfo(curvature.dtype).tiny
    _diagonal(gram_right).add_(lift.unsqueeze(-1))

    def damped_hessian(x: Tensor) -> Tensor:
        # In the eigenbases, `turn` apart, S X^T is s x^T turn and X^T S is turn x^T s.
        image = torch.baddbmm(x @ gram_left, gram_right, x)
        image = torch.baddbmm(image, s, x.mT @ turn, alpha=-1)
        return torch.baddbmm(image, turn, x.mT @ s, alpha=-1)

    x = _truncated_cg(damped_hessian, slope, curvature + lift[:, None, None])
    predicted = 2 * _dot(slope, x) - _dot(x, damped_hessian(x)) + lift * _dot(x, x)
    return p_right @ x @ p_left.mT, predicted


def _truncated_cg(matrix: Callable[[Tensor], Tensor], slope: Tensor, preconditioner: Tensor) -> Tensor:
    """A few conjugate-gradient steps on `matrix(x) = slope`, preconditioned by a diagonal, each problem for itself.

    A problem stops at its tolerance, or where the matrix is concave along the direction; if that is the first one,
    the preconditioned slope itself is returned.
    """
    x, residual = torch.zeros_like(slope), slope.clone()
    z = p = residual / preconditioner
    energy = first = _dot(residual, z)
    size = energy  # p^T preconditioner p, by its recurrence
    alive = energy > 0
    for k in range(_CG_STEPS):
        image = matrix(p)
        bend = _dot(p, image)
        concave = bend <= 1e-6 * size
        if k == 0:
            x = torch.where((alive & concave)[:, None, None], p, x)
        alive = alive & ~concave
        length = torch.where(alive, energy / bend, 0.0)[:, None, None]
        x.addcmul_(length, p)
        residual.addcmul_(length, image, value=-1)
        z = residual / preconditioner
        next_energy = _dot(residual, z)
        alive = alive & (next_energy > _CG_TOLERANCE**2 * first)
        if not alive.any():
            break
        turn = torch.where(alive, next_energy / energy, 0.0)
        p = torch.addcmul(z, turn[:, None, None], p)
        size = next_energy + turn.square() * size
        energy = torch.where(alive, next_energy, energy)
    return x


def _divide(x: Tensor, u: Tensor) -> Tensor:
    """`x U^{-1}`; not finite, instead of an error, where U is singular, so that no step to it is taken."""
    return torch.linalg.solve_ex(u, x, left=False).result


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of every pair of matrices, `(b)`."""
    return (x.flatten(1).unsqueeze(-2) @ y.flatten(1).unsqueeze(-1)).flatten()


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)
