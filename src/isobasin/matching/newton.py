"""Newton's method for a batch of problems (1) of `isobasin.matching.subspace`, each in a trust region of its own.

With `U <- (I + X + X²/2) U`, at `B'_L = B_L U^T`, `B'_R = B_R U^{-1}` with residuals `E = A - B'` and Grams `G`, f is
to second order `f - 2 <S_L - S_R, X> + <X, H X>`, least where

    H X = G_R X + X G_L - (S X^T + X^T S) = S_L - S_R,                                        (2)
    S_L = E_L^T B'_L,   S_R = B'_R^T E_R,   S = (S_L + S_R) / 2.

Without the bracket (the residual's own curvature) (2) is a Sylvester equation, which the eigenvectors of both Grams
solve; alone it crawls where residuals stay large, as between models trained apart. So it is the preconditioner of a few
conjugate-gradient steps, which end at the trust region's edge or follow negative curvature to it (Steihaug's method).
Where residuals are large the bracket counts in it, too: in one basis for both Grams, the eigenvectors of their sum, the
diagonals of all three couple each `x_ij` to `x_ji` alone, and H takes four products instead of six.

What decides is in float64: f, the right side of (2), and U. Only X is found in float32, in units in which Grams and
right side are of order one: a step is taken only if f falls, so its own rounding costs a little of the fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Steps at which eigenvectors are computed anew: the Grams change little, and a preconditioner need not be exact.
_REFRESH = frozenset((0, 8, 24, 56))
# Conjugate-gradient steps in one step, and their relative accuracy by the number of bases: with two they are few.
_CG_STEPS = 16
_CG_TOLERANCE = {1: 0.2, 2: 0.1}
# How much of what couples `x_ij` to `x_ji` the preconditioner has, at most, of what would make it singular.
_COUPLED = 0.5
# How far X may go at first, relative to B' in the norm of the preconditioner. Longer steps end in the basins of worse
# minima more often: with twice this one of 96 unrelated heads of 64 features ends above gradient descent, and with
# looser conjugate gradients or tolerances some more.
RADIUS = 0.05
# A start that is further above its rival than this many of its last falls is given up.
_HOPE = 30.0
# Two starts whose factors are this near to each other, in units of `||B'||² / n`, end at one minimum, and the lower is
# followed: between minima at least one of n directions has turned.
_SAME = 0.5
# What is below this is nothing: float32 still holds it, and one over it.
_NOTHING = 1e-30
# How often, and by how much, a step that didn't lower f is shortened before it is looked for anew.
_RETRIES, _SHORTER = 3, 0.3


@dataclass
class Problems:
    """Some problems, and where each stands; the leading dimension of every tensor counts them.

    Attributes:
        a_left, b_left, a_right, b_right: The rows that U can move, `(b, n, n)`; the rest of f is in `constant`.
        constant: `(b)`.
        u: `(b, n, n)`.
        left, right: `B'_L` and `B'_R`.
        f: `(b)`; infinite where U is singular.
        radius: Of the trust region, relative to B'.
        basis: Eigenvectors of `G_R` and of `G_L`, float32, `(b, 2, n, n)`, or of their sum, `(b, 1, n, n)`.
        index: Which problem of the batch it is.
        floor: What f may be called zero at.
    """

    a_left: Tensor
    b_left: Tensor
    a_right: Tensor
    b_right: Tensor
    constant: Tensor
    u: Tensor
    left: Tensor
    right: Tensor
    f: Tensor
    radius: Tensor
    basis: Tensor
    index: Tensor
    floor: Tensor

    def only(self, which: Tensor) -> Problems:
        """Those of a mask; themselves if that is all."""
        if bool(which.all()):
            return self
        return Problems(*(getattr(self, field.name)[which] for field in fields(self)))

    def at(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`B'_L`, `B'_R` and f at U."""
        left, right = self.b_left @ u.mT, divide(self.b_right, u)
        f = squares(self.a_left - left) + squares(self.a_right - right) + self.constant
        return left, right, f.nan_to_num(torch.inf, torch.inf)

    def take(self, which: Tensor, u: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> None:
        """Go to other U where a mask says so; what was there is not overwritten, for it is still compared with."""
        chosen = which[:, None, None]
        left, right, f = found
        self.u, self.f = torch.where(chosen, u, self.u), torch.where(which, f, self.f)
        self.left, self.right = torch.where(chosen, left, self.left), torch.where(chosen, right, self.right)


@dataclass(frozen=True)
class Found:
    """Where the problems of a batch ended.

    Attributes:
        u: `(b, n, n)`.
        f: `(b)`.
        iterations: Steps taken, `(b)` int64.
        converged: Whether a step gained less than the tolerance, or there was nothing to gain, `(b)` bool.
    """

    u: Tensor
    f: Tensor
    iterations: Tensor
    converged: Tensor

    def put(self, which: Tensor, found: Found) -> None:
        """Take what was found of the problems of a mask."""
        for field in fields(self):
            getattr(self, field.name)[which] = getattr(found, field.name)


def descend(problems: Problems, rivals: Tensor, max_iterations: int, tolerance: float) -> Found:
    """Take steps until none is expected to lower f by more than this share of it.

    Args:
        problems: All of a batch, where they begin; they are moved.
        rivals: Which other one is the same problem from another start, or -1, `(b)`: of the two only the lower has to
            be followed to its end, and one once they are at the same place.
        max_iterations: Steps at most.
        tolerance: Of f.
    """
    u, f = problems.u.clone(), problems.f.clone()
    iterations, converged = torch.zeros_like(problems.index), f.isfinite()
    # The last entry is that of no rival.
    known = torch.cat([f, f.new_full((1,), torch.inf)])
    going = problems.only((f > problems.floor) & f.isfinite())
    for step in range(max_iterations):
        if not len(going.f):
            break
        iterations[going.index] += 1
        before = going.f
        on = _step(going, step in _REFRESH, tolerance)
        u[going.index], known[going.index] = going.u, going.f
        above = going.f - known[rivals[going.index]]
        on &= ~(above > _HOPE * (before - going.f).maximum(tolerance * going.f)) & ~_met(going, rivals)
        going = going.only(on)
    converged[going.index] = False
    return Found(u, known[:-1], iterations, converged)


def _met(p: Problems, rivals: Tensor) -> Tensor:
    """Which have come to where their lower rival is, too."""
    here = torch.arange(len(p.f), device=p.f.device)
    # The last entry is that of no rival.
    place = torch.full((len(rivals) + 1,), -1, device=here.device)
    place[p.index] = here
    other = place[rivals[p.index]]
    one = (other > here).nonzero().squeeze(-1)
    other = other[one]
    apart = squares(p.left[one] - p.left[other]) + squares(p.right[one] - p.right[other])
    size = squares(p.left[one]) + squares(p.right[one])
    higher = torch.where(p.f[one] > p.f[other], one, other)
    met = torch.zeros_like(p.f, dtype=torch.bool)
    met[higher[p.u.shape[-1] * apart < _SAME * size]] = True
    return met


def _step(p: Problems, fresh: bool, tolerance: float) -> Tensor:
    """One step of every problem; returns which of them go on."""
    model = _Quadratic.of(p, fresh)
    x, predicted, at_edge, reach = model.minimum(p.radius)
    before = p.f
    u = _moved(p.u, x)
    found = p.at(u)
    gain = before - found[-1]
    better, ratio = gain > 0, gain / predicted.clamp(min=torch.finfo(before.dtype).tiny)
    p.take(better, u, found)
    worth = predicted > 1e-13 * before
    reach = torch.minimum(reach, p.radius) * _shortened(p, x, ~better & worth)
    grown = torch.where((ratio > 0.75) & at_edge, 2.5 * p.radius, p.radius)
    p.radius = torch.where(ratio < 0.25, torch.where(better, _SHORTER * reach, reach), grown)
    # What is left after a step: what the quadratic model was wrong by, and what conjugate gradients left.
    left_over = torch.where(at_edge, 1.0, ((1 - ratio).abs() + 2 * model.accuracy**2).clamp(max=1.0))
    done = better & (gain * left_over <= tolerance * before) & (ratio > 0.25)
    stuck = (p.f >= before) & ((p.radius < 1e-9) | ~worth)
    return ~(done | stuck | (p.f <= p.floor))


def _moved(u: Tensor, x: Tensor) -> Tensor:
    """`(I + X + X²/2) U`."""
    return torch.baddbmm(u, torch.baddbmm(x, x, x, alpha=0.5), u)


def _shortened(p: Problems, x: Tensor, failed: Tensor) -> Tensor:
    """Go along X as far as f falls, where all of X was too far: a shorter step costs no new direction.

    Returns:
        What the length of every step was multiplied by.
    """
    share = torch.ones_like(p.f)
    for _ in range(_RETRIES):
        if not failed.any():
            break
        share = torch.where(failed, _SHORTER * share, share)
        some = p.only(failed)
        u = _moved(some.u, share[failed][:, None, None] * x[failed])
        found = some.at(u)
        lower = found[-1] < some.f
        which = failed.clone()
        which[failed] = lower
        for mine, new in zip((p.u, p.left, p.right, p.f), (u, *found), strict=True):
            mine[which] = new[lower]
        failed = failed & ~which
    return share


@dataclass(frozen=True)
class _Quadratic:
    """The quadratic model of f around where the problems stand, in eigenvectors of the Grams and in float32.

    Attributes:
        p, q: `Problems.basis`, of `G_R` and of `G_L`.
        turn: `P^T Q`; None if they are one.
        slope: `P^T (S_L - S_R) Q`, of norm 1.
        s: `P^T S Q` in units of `1 / unit`.
        gram_right, gram_left: `P^T G_R P` and `Q^T G_L Q`, likewise.
        stretch: The norm of `S_L - S_R` in units of `1 / unit`, float64.
        unit: One over the mean eigenvalue of both Grams, float64.
    """

    p: Tensor
    q: Tensor
    turn: Tensor | None
    slope: Tensor
    s: Tensor
    gram_right: Tensor
    gram_left: Tensor
    stretch: Tensor
    unit: Tensor

    @classmethod
    def of(cls, p: Problems, fresh: bool) -> _Quadratic:
        """The model where the problems stand, `fresh` with new eigenvectors."""
        # Of heads that are zero there is neither slope nor curvature.
        unit = p.u.shape[-1] / (squares(p.left) + squares(p.right)).clamp(min=_NOTHING**2)
        root = unit.sqrt().float()[:, None, None]
        # Residuals are differences in float64; what is made of them needs no more digits than X.
        left, right, e_left, e_right = (
            x.float().mul_(root) for x in (p.left, p.right, p.a_left - p.left, p.a_right - p.right)
        )
        if fresh:
            grams = torch.stack([right.mT @ right, left.mT @ left], 1)
            p.basis = torch.linalg.eigh(grams if p.basis.shape[1] == 2 else grams.sum(1, keepdim=True)).eigenvectors
        to_right, to_left = p.basis[:, 0], p.basis[:, -1]
        left, right, e_left, e_right = left @ to_left, right @ to_right, e_left @ to_right, e_right @ to_left
        s_left, s_right = e_left.mT @ left, right.mT @ e_right
        slope = s_left - s_right
        stretch = torch.linalg.vector_norm(slope, dim=(-2, -1), dtype=unit.dtype).clamp(min=_NOTHING)
        return cls(
            to_right,
            to_left,
            turn=to_right.mT @ to_left if p.basis.shape[1] == 2 else None,
            slope=slope.div_(stretch.float()[:, None, None]),
            s=(s_left + s_right).mul_(0.5),
            gram_right=right.mT @ right,
            gram_left=left.mT @ left,
            stretch=stretch,
            unit=unit,
        )

    def image(self, x: Tensor) -> Tensor:
        """`H X`: in the eigenvectors, `turn` apart, `S X^T` is `s x^T turn` and `X^T S` is `turn x^T s`."""
        found, y = torch.baddbmm(x @ self.gram_left, self.gram_right, x), x.mT
        if self.turn is None:
            return torch.baddbmm(torch.baddbmm(found, self.s, y, alpha=-1), y, self.s, alpha=-1)
        found = torch.baddbmm(found, self.s, y @ self.turn, alpha=-1)
        return torch.baddbmm(found, self.turn, y @ self.s, alpha=-1)

    @property
    def accuracy(self) -> float:
        """That of the solution of (2)."""
        return _CG_TOLERANCE[1 if self.turn is None else 2]

    def preconditioner(self) -> _Preconditioner:
        """What nearly inverts `image`: its diagonal, and in one basis what couples `x_ij` to `x_ji`."""
        curvature = diagonal(self.gram_right).unsqueeze(-1) + diagonal(self.gram_left).unsqueeze(-2)
        # Directions without curvature (rank-deficient heads) must not be divided by zero.
        curvature = curvature + 1e-6 * curvature.mean((-2, -1), keepdim=True)
        if self.turn is not None:
            return _Preconditioner(1 / curvature)
        own, product = diagonal(self.s), curvature * curvature.mT
        limit = _COUPLED * product.sqrt()
        coupling = (own.unsqueeze(-1) + own.unsqueeze(-2)).clamp(-limit, limit)
        determinant = product - coupling.square()
        return _Preconditioner(curvature.mT / determinant, coupling / determinant)

    def minimum(self, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X in float64, the fall of f that the model predicts for it, whether it ends at the edge, and its length."""
        stretch, n = self.stretch, self.slope.shape[-1]
        bound = (radius.square() * n / stretch.square()).float()
        x, fall, at_edge, length = _truncated_cg(self.image, self.slope, self.preconditioner(), bound, self.accuracy)
        x = stretch[:, None, None] * (self.p @ x @ self.q.mT).to(stretch.dtype)
        return (
            x,
            fall.to(stretch.dtype) * stretch.square() / self.unit,
            at_edge,
            length.to(stretch.dtype).sqrt() * stretch / n**0.5,
        )


@dataclass(frozen=True)
class _Preconditioner:
    """`own ∘ x + across ∘ x^T`, positive definite.

    Attributes:
        own: `(b, n, n)`.
        across: Likewise; None is zero.
    """

    own: Tensor
    across: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Of x, into other memory."""
        torch.mul(self.own, x, out=out)
        return out if self.across is None else out.addcmul_(self.across, x.mT)


def _truncated_cg(
    matrix: Callable[[Tensor], Tensor],
    slope: Tensor,
    preconditioner: _Preconditioner,
    bound: Tensor,
    accuracy: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conjugate gradients on `matrix(x) = slope` inside a ball about 0, each problem for itself.

    A problem stops at its accuracy, at the edge, or where a direction is concave: then at the edge along it. Lengths
    are those of the preconditioner's norm, squared no more than `bound`, and come from recurrences.

    Returns:
        x, `2 <slope, x> - <x, matrix(x)>`, whether x is at the edge, and its squared length.
    """
    x, residual = torch.zeros_like(slope), slope.clone()
    z = preconditioner(residual, torch.empty_like(residual))
    direction = z.clone()
    energy = first = pp = _dot(residual, z)
    xx, xp, fall = (torch.zeros_like(energy) for _ in range(3))
    alive, at_edge = energy > 0, torch.zeros_like(energy, dtype=torch.bool)
    for _ in range(_CG_STEPS):
        image = matrix(direction)
        bend = _dot(direction, image)
        length = energy / bend
        leaves = (bend <= 1e-6 * pp) | (xx + length * (2 * xp + length * pp) >= bound)
        edge = (-xp + (xp.square() + pp * (bound - xx)).clamp(min=0).sqrt()) / pp
        length = torch.where(alive, torch.where(leaves, edge, length), 0.0)
        x.addcmul_(length[:, None, None], direction)
        fall = fall + length * (2 * energy - length * bend)
        xx, xp = xx + length * (2 * xp + length * pp), xp + length * pp
        at_edge = at_edge | (alive & leaves)
        residual.addcmul_(length[:, None, None], image, value=-1)
        preconditioner(residual, z)
        following = _dot(residual, z)
        alive = alive & ~leaves & (following > accuracy**2 * first)
        if not alive.any():
            break
        beta = torch.where(alive, following / energy, 0.0)
        torch.addcmul(z, beta[:, None, None], direction, out=direction)
        xp, pp = beta * xp, following + beta.square() * pp
        energy = torch.where(alive, following, energy)
    return x, fall, at_edge, xx.clamp(min=0)


def divide(x: Tensor, u: Tensor) -> Tensor:
    """`x U^{-1}`; not finite, instead of an error, where U is singular, so that no step to it is taken."""
    return torch.linalg.solve_ex(u, x, left=False).result


def squares(x: Tensor) -> Tensor:
    """Squared norm of every matrix, `(b)`."""
    return torch.linalg.vector_norm(x, dim=(-2, -1)).square()


def diagonal(x: Tensor) -> Tensor:
    """The diagonals of matrices."""
    return x.diagonal(dim1=-2, dim2=-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of every pair of matrices, `(b)`."""
    # As a product of one row and one column it takes ten times as long.
    return (x * y).sum((-2, -1))
