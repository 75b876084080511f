"""Stage 2 on GL(n): the invertible map that brings one pair of factors onto another.

For every head, over all invertible U,

    minimise  f(U) = ||A_L - B_L U^T||² + ||A_R - B_R U^{-1}||².                              (1)

(arXiv 2606.17830 starts from orthogonal Procrustes and descends by gradient; here a second start in the
balanced gauge recovers any planted U, and a damped Newton method replaces gradient descent.) The tall factors
enter only through B's triangular factor and the starts of far pairs, so every step costs n×n work, batched over all
heads of all layers. Grams of B square the rounding: they are used only where it is well conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.matching import newton

# f below this share of ||A||² is rounding: the pair is matched exactly and there is nothing to gain.
_EXACT = 1e-26
# Below this share of ||A||² least squares on one side is a start that is good enough.
_NEAR = 0.05
# Where f is at most this many times what it is at any U, such a start may go far at once: that saves a step of four.
# Badly conditioned heads are above it, and take more steps with a wide radius than with `newton.RADIUS`.
_SURE, _WIDE_RADIUS = 3.0, 0.2
# Grams square condition numbers: up to this one of B they cost 1e-10 of its accuracy.
_WELL = 1e3
_ROUNDING = 1e-13
# Coefficients of x, x³ and x⁵: those of Muon (Jordan et al., 2024) bring what is small near 1 fast, the last keep it.
_POLAR = ((3.4445, -4.7750, 2.0315),) * 7 + ((1.875, -1.25, 0.375),) * 3
# Matrices that are wider than this are decomposed by Newton's iteration where that is quicker; it takes some 9 steps.
_WIDE, _NEWTON_STEPS = 512, 20
# What squared singular values of an orthogonal matrix may lack together.
_ROUGH = 0.1


@dataclass(frozen=True)
class Core:
    """Problem (1) in orthonormal bases of what B's sides span, which both models share.

    Attributes:
        a_left, b_left: The rows that U can move, `(..., n, n)`; `b_left` is upper triangular.
        a_right, b_right: Likewise.
        constant: Squared norm of the rest of A, which f has at any U, `(...)`.
        whole_left, whole_right: A as it was, `(..., rows, n)`.
    """

    a_left: Tensor
    b_left: Tensor
    a_right: Tensor
    b_right: Tensor
    constant: Tensor
    whole_left: Tensor
    whole_right: Tensor

    def objective(self, u: Tensor) -> Tensor:
        """f(U), `(...)`."""
        left, right = self.moved(u)
        return newton.squares(self.a_left - left) + newton.squares(self.a_right - right) + self.constant

    def moved(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`B_L U^T` and `B_R U^{-1}`."""
        return self.b_left @ u.mT, newton.divide(self.b_right, u)

    def scale(self) -> Tensor:
        """`||A_L||² + ||A_R||²`, `(...)`."""
        return newton.squares(self.a_left) + newton.squares(self.a_right) + self.constant

    def only(self, which: Tensor) -> Core:
        """Those of a mask, in one leading dimension; themselves if that is all of one."""
        return self if which.ndim == 1 and bool(which.all()) else Core(*(x[which] for x in vars(self).values()))


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
    """Replace tall `(..., rows, n)` factors by n×n ones with the same f but for a constant.

    B's triangular factor holds everything, and no orthogonal one is formed. It comes from Grams where B is so well
    conditioned that their rounding is far below that of stored weights, and elsewhere, head by head, from an orthogonal
    factorisation.
    """
    left, r_left, rest_left = _triangular(a_left, b_left)
    right, r_right, rest_right = _triangular(a_right, b_right)
    return Core(left, r_left, right, r_right, rest_left + rest_right, a_left, a_right)


def _triangular(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Q^T A`, R, and the squared norm of `A - Q Q^T A`, with `B = Q R`."""
    n, batch = b.shape[-1], b.shape[:-2]
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    top, r, rest, well = _from_grams(a, b)
    if not well.all():
        stacked = torch.cat([b[~well], a[~well]], -1)
        full = torch.linalg.qr(torch.nn.functional.pad(stacked, (0, 0, 0, max(0, 2 * n - a.shape[-2]))), mode="r").R
        r[~well], top[~well] = full[:, :n].split(n, -1)
        rest[~well] = newton.squares(full[:, n:, n:])
    return top.reshape(*batch, n, n), r.reshape(*batch, n, n), rest.reshape(batch)


def _from_grams(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_triangular` returns, from B's Gram, and where that is as good as exact."""
    gram = b.mT @ b
    lower, failed = torch.linalg.cholesky_ex(gram)
    eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand_as(gram)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    top = inverse @ (b.mT @ a)
    whole = newton.squares(a)
    rest = whole - newton.squares(top)
    # A lies in the span of B but for rounding: what is left can't be told from nothing.
    rest = torch.where(rest <= _ROUNDING * whole, 0.0, rest)
    condition = newton.diagonal(gram).sum(-1) * newton.squares(inverse)
    return top, lower.mT, rest, (failed == 0) & (condition <= _WELL**2)


def polar(x: Tensor) -> Tensor:
    """The orthogonal polar factor: argmax over orthogonal Ω of <Ω, x>."""
    # A GPU multiplies wide matrices far sooner than it finds their singular values, a CPU does not.
    found = _iterated_polar(x) if x.is_cuda and x.ndim == 2 and len(x) > _WIDE else None
    if found is None:
        u, _, vh = torch.linalg.svd(x)
        found = u @ vh
    return found


def _iterated_polar(x: Tensor) -> Tensor | None:
    """`polar` of a square matrix by Newton's iteration, `X <- (γ X + X^{-T} / γ) / 2`.

    γ is Higham's (Functions of Matrices, 8.6). None where it doesn't end, as for a matrix without an inverse.
    """
    for _ in range(_NEWTON_STEPS):
        inverse = torch.linalg.inv_ex(x).inverse.mT
        one, other = (torch.linalg.matrix_norm(y, 1) * torch.linalg.matrix_norm(y, torch.inf) for y in (x, inverse))
        scale = (other / one) ** 0.25
        after = (scale * x + inverse / scale) / 2
        moved = float(torch.linalg.matrix_norm(after - x) / torch.linalg.matrix_norm(after))
        x = after
        # What is left is about the square of that.
        if moved < 1e-9:
            return x
    return None


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
    to_a, undo_a = _balance(core.whole_left, core.whole_right)
    left = (core.b_left @ to_b).mT @ (core.a_left @ to_a)
    right = (core.b_right @ undo_b.mT).mT @ (core.a_right @ undo_a.mT)
    return (to_b @ polar(left + right) @ undo_a).mT


def gauss_newton(core: Core, max_iterations: int = 100, tolerance: float = 3e-8) -> SubspaceSolution:
    """Minimise (1) by Newton steps in a trust region (`isobasin.matching.newton`), from starts in closed form.

    (1) is not convex. Near a pair of equal functions least squares on one side is the planted map already, or next
    to it. Elsewhere two starts are followed until one has no hope: the published one, and the nearer of two in balanced
    gauges.

    Args:
        core: The reduced problems.
        max_iterations: Steps at most.
        tolerance: Stop where no step is expected to lower f by more than this share of it.
    """
    shape = core.b_left.shape
    leading = core.constant.ndim
    flat = Core(*(x.reshape(-1, *x.shape[leading:]) for x in vars(core).values()))
    problems = _problems(flat, least_squares_start(flat), bases=2)
    far = problems.f > _NEAR * flat.scale()
    found = newton.Found(problems.u, problems.f, torch.zeros_like(problems.index), torch.zeros_like(far))
    limits = max_iterations, tolerance
    if not far.all():
        near = problems.only(~far)
        # Where hardly more is left than no U can change, the minimum is near, and so is no other one.
        near.radius[near.f <= _SURE * near.constant] = _WIDE_RADIUS
        near.index = torch.arange(len(near.f), device=near.f.device)
        alone = torch.full_like(near.index, -1)
        found.put(~far, newton.descend(near, alone, *limits))
    if far.any():
        found.put(far, _better_of_two(flat.only(far), *limits))
    return SubspaceSolution(
        found.u.reshape(*shape[:-2], shape[-1], shape[-1]),
        *(x.reshape(shape[:-2]) for x in (found.f, found.iterations, found.converged)),
    )


def _better_of_two(core: Core, max_iterations: int, tolerance: float) -> newton.Found:
    """Where the lower of two starts of each problem ends."""
    starts = torch.cat(_starts(core))
    count = len(starts) // 2
    first = torch.arange(count, device=starts.device)
    rivals = torch.cat([first + count, first])
    found = newton.descend(_problems(core, starts, bases=1), rivals, max_iterations, tolerance)
    best = torch.where(found.f[:count] <= found.f[count:], first, first + count)
    iterations = found.iterations.unflatten(0, (2, count)).amax(0)
    return newton.Found(found.u[best], found.f[best], iterations, found.converged[best])


def _problems(core: Core, u: Tensor, *, bases: int) -> newton.Problems:
    """The problems at these U, one or more of every head one after another, with so many bases each."""
    starts = len(u) // len(core.constant)
    names = ("a_left", "b_left", "a_right", "b_right", "constant")
    rows = {name: torch.cat([getattr(core, name)] * starts) for name in names}
    scale = core.scale().repeat(starts)
    zero = torch.zeros_like(scale)
    problems = newton.Problems(
        **rows,
        u=u,
        left=zero,
        right=zero,
        f=zero,
        radius=torch.full_like(scale, newton.RADIUS),
        basis=torch.zeros(len(u), bases, *u.shape[-2:], dtype=torch.float32, device=u.device),
        index=torch.arange(len(u), device=u.device),
        floor=scale * _EXACT,
    )
    problems.left, problems.right, problems.f = problems.at(u)
    return problems


def least_squares_start(core: Core) -> Tensor:
    """U of `min ||A_L - B_L U^T||`, which one triangular solution gives; it is not finite where B_L lacks rank."""
    return torch.linalg.solve_triangular(core.b_left, core.a_left, upper=True).mT


def _starts(core: Core) -> tuple[Tensor, Tensor]:
    """Two starts of problems that are far: the lowest in closed form, and the published one."""
    options = _far_starts(core)
    # As many as there are directions, if all singular values are 1: of heads of less rank they aren't.
    rough = newton.squares(options[0]) < options.shape[-1] - _ROUGH
    if bool(rough.any()):
        options[0, rough] = orthogonal_start(core.only(rough))
    values = torch.stack([core.objective(x).nan_to_num(torch.inf, torch.inf) for x in options])
    # Where they are no lower, as of heads that are zero, the published one is invertible and the others may not be.
    values[1:] += 1e-9 * core.scale()
    published = options[0]
    return options[values.argmin(0), torch.arange(len(published), device=published.device)], published


def _far_starts(core: Core) -> Tensor:
    """Orthogonal Procrustes as both models are, between A as it is and B in its balanced gauge, and in both's.

    The first and the last are next to `orthogonal_start` and `balanced_start`: Grams and products cost a part of what
    singular vectors do, and what that loses of the smallest directions the descent finds again.

    Returns:
        `(3, b, n, n)`.
    """
    root_left, root_right = (_root(x) for x in (core.whole_left, core.whole_right))
    lefts, rights = torch.cat([root_left, core.b_left]), torch.cat([root_right, core.b_right])
    to, undo = _balance_grams(lefts, rights)
    (to_a, to_b), (undo_a, undo_b) = to.chunk(2), undo.chunk(2)
    left, right = core.a_left.mT @ core.b_left, core.a_right.mT @ core.b_right
    published, left, right = left + right, left @ to_b, right @ undo_b.mT
    found = _near_polar(torch.stack([published, left + right, to_a.mT @ left + undo_a @ right]))
    found[1:] = found[1:] @ to_b.mT
    found[2] = undo_a.mT @ found[2]
    return found


def _near_polar(x: Tensor) -> Tensor:
    """Next to `polar`, by products alone: singular values are brought to 1 by odd polynomials.

    Those below some 1e-5 of the norm stay below 1, and a matrix of zeros stays what it is.
    """
    norm = torch.linalg.matrix_norm(x, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    y = (x / norm).float().flatten(0, -3)
    for a, b, c in _POLAR:
        gram = y.mT @ y
        y = torch.baddbmm(y, y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return y.to(x.dtype).reshape(x.shape)


def _root(x: Tensor) -> Tensor:
    """An upper triangular R with `R^T R = X^T X`, next to it where X lacks rank."""
    gram = x.mT @ x
    lift = 1e-12 * newton.diagonal(gram).mean(-1) + torch.finfo(x.dtype).tiny
    return torch.linalg.cholesky_ex(gram + torch.diag_embed(lift.unsqueeze(-1).expand(gram.shape[:-1]))).L.mT


def _balance_grams(r_left: Tensor, r_right: Tensor) -> tuple[Tensor, Tensor]:
    """`_balance` of square factors: with `M = R_L R_R^T = S Σ T^T`, T are the eigenvectors of `M^T M`."""
    m = r_left @ r_right.mT
    sigma, t = _singular(m)
    root = sigma.rsqrt()
    return r_right.mT @ t * root.unsqueeze(-2), (root / sigma).unsqueeze(-1) * ((m @ t).mT @ r_left)


def _singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, lifted to what a Gram can tell from zero, and right singular vectors."""
    squared, t = torch.linalg.eigh(x.mT @ x)
    floor = squared[..., -1:] * torch.finfo(x.dtype).eps + torch.finfo(x.dtype).tiny
    return squared.maximum(floor).sqrt(), t


def cap_condition(core: Core, u: Tensor, limit: float) -> Tensor:
    """U with condition number at most `limit`: singular values clamped about their geometric mean.

    The orthogonal start, of condition 1, replaces it where that has the lower objective.
    """
    # A bound that costs a third of singular values: hardly any map comes near the limit.
    if (newton.squares(u) * newton.squares(torch.linalg.inv_ex(u).inverse) <= limit**2).all():
        return u
    sigma = torch.linalg.svdvals(u)
    over = sigma[..., 0] > sigma[..., -1] * limit
    if not over.any():
        return u
    problem = core.only(over)
    left, sigma, right = torch.linalg.svd(u[over])
    middle, half = sigma.log().mean(-1, keepdim=True), 0.5 * math.log(limit)
    clamped = left * sigma.log().clamp(middle - half, middle + half).exp().unsqueeze(-2) @ right
    plain = orthogonal_start(problem)
    lower = problem.objective(clamped) <= problem.objective(plain)
    result = u.clone()
    result[over] = torch.where(lower[..., None, None], clamped, plain)
    return result
