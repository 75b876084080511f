"""Stage 2 on rotated planes: one complex number per plane, in closed form but for one scalar root.

For a plane with complex columns `l_A, r_A` of the reference and `l, r` of the model, over all u ≠ 0,

    minimise  ||l_A - l u||² + ||r_A - r / conj(u)||²

(arXiv 2606.17830, section 3: the commutant of the rotations). With `x = |u|²`, `η_L = ||l||²`, `γ_L = l^H l_A`,
likewise R, the best phase is `arg(√x γ_L + γ_R / √x)`, which leaves

    f(x) = x η_L + η_R / x - 2 sqrt(x |γ_L|² + |γ_R|² / x + 2 Re(γ_L conj γ_R)).                     (1)

f can have two minima, on either side of the ridge at `x = |γ_R| / |γ_L|`, so a local search may return the worse
one; here a grid finds both basins, both are refined, and the lower kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.bounds import UNHEARD, VANISHING
from isobasin.symmetries.bilinear import Columns, column_squares

_GRID = 32
_NEWTON_STEPS = 60


@dataclass(frozen=True)
class PlaneProblem:
    """What (1) needs of every plane: `η` real, `γ` complex, all of shape `(..., p)`."""

    eta_left: Tensor
    eta_right: Tensor
    gamma_left: Tensor
    gamma_right: Tensor

    @classmethod
    def of(
        cls, a_left: Tensor, b_left: Tensor, a_right: Tensor, b_right: Tensor, places: tuple[Columns, Columns]
    ) -> PlaneProblem:
        """From real columns of the reference (a) and the model (b), `(..., slots, rows, features)`.

        One product of all features with all, which reads them once, has the inner products of planes in it.

        Args:
            a_left: L of the reference; all slots have one u.
            b_left: L of the model.
            a_right: R of the reference.
            b_right: R of the model.
            places: Which features are the real parts of the planes, and which the imaginary ones.
        """
        eta_left, eta_right = (_eta(b, places) for b in (b_left, b_right))
        return cls(eta_left, eta_right, _gamma(a_left, b_left, places), _gamma(a_right, b_right, places))

    def objective(self, u: Tensor) -> Tensor:
        """The objective less its constant `||l_A||² + ||r_A||²`, `(..., p)`."""
        x = u.abs().square()
        cross = (u.conj() * self.gamma_left).real + (self.gamma_right / u).real
        return x * self.eta_left + self.eta_right / x - 2 * cross


def _eta(x: Tensor, places: tuple[Columns, Columns]) -> Tensor:
    """`||x_p||²` of planes, `(..., p)`."""
    squares = column_squares(x).sum(-2)
    return squares[..., places[0]] + squares[..., places[1]]


def _gamma(a: Tensor, b: Tensor, places: tuple[Columns, Columns]) -> Tensor:
    """`b_p^H a_p` of planes, `(..., p)`."""
    cross = (b.mT @ a).sum(-3)
    (rr, ri), (ir, ii) = ([cross[..., i, :][..., j].diagonal(dim1=-2, dim2=-1) for j in places] for i in places)
    return torch.complex(rr + ii, ri - ir)


def align_planes(problem: PlaneProblem) -> Tensor:
    """The global minimiser u of every plane, `(..., p)` complex128.

    In `r = ½ ln x`, shifted so that both norms are equal, (1) is, up to a factor,

        f(r) = 2 cosh 2r - 2 sqrt(a² e^{2r} + b² e^{-2r} + 2c),

    whose minima lie between `-ln(1 + b)` and `ln(1 + a)`. A plane one side of which is zero has none: the other says u.
    """
    dead = (problem.eta_left < VANISHING) | (problem.eta_right < VANISHING)
    eta_left, eta_right = (e.clamp(min=VANISHING) for e in (problem.eta_left, problem.eta_right))
    balance = 0.25 * (eta_right.log() - eta_left.log())
    level = (eta_left * eta_right).sqrt()
    a = problem.gamma_left * balance.exp() / level
    b = problem.gamma_right * (-balance).exp() / level
    r = _lowest(a.abs(), b.abs(), (a * b.conj()).real)
    turn = r.exp() * a + (-r).exp() * b
    phase = torch.where(turn.abs() > 0, turn, torch.ones_like(turn)).sgn()
    return torch.where(dead, _one_sided(problem), phase * (r + balance).exp())


def _one_sided(problem: PlaneProblem) -> Tensor:
    """The minimiser where one side is zero, bounded, since no function depends on it; 1 where neither says anything."""
    sides = ((problem.gamma_left, problem.eta_left), (problem.gamma_right, problem.eta_right))
    left, right = (torch.where(eta < VANISHING, 0.0, gamma / eta.clamp(min=VANISHING)) for gamma, eta in sides)
    u = torch.where(right == 0, left, 1 / torch.where(right == 0, 1.0, right).conj())
    known = (left == 0) != (right == 0)
    return torch.where(known, u.sgn() * u.abs().clamp(1 / UNHEARD, UNHEARD), 1.0)


def turn_planes(problem: PlaneProblem) -> Tensor:
    """The best u of modulus 1: a rotation of the plane, `(..., p)`."""
    turn = problem.gamma_left + problem.gamma_right
    return torch.where(turn.abs() > 0, turn, torch.ones_like(turn)).sgn()


def unmoved_planes(problem: PlaneProblem) -> Tensor:
    """Leave all planes as they are: u = 1, `(..., p)`."""
    return torch.ones_like(problem.gamma_left)


def _lowest(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The global minimiser r: a grid, then the two lowest of its basins refined, then the lower of them."""
    shape, (a, b, c) = a.shape, (x.flatten() for x in (a, b, c))
    low, high = -(1 + b).log() - 0.1, (1 + a).log() + 0.1
    step = (high - low) / (_GRID - 1)
    grid = low + step * torch.arange(_GRID, dtype=a.dtype, device=a.device).unsqueeze(-1)
    values = _reduced(grid, a, b, c)
    ends = torch.full_like(values[:1], torch.inf)
    padded = torch.cat([ends, values, ends])
    basins = torch.where((values <= padded[:-2]) & (values <= padded[2:]), values, torch.inf)
    first = basins.argmin(0, keepdim=True)
    # f has at most two minima: most planes have one basin, so only the others pay for a second.
    basins.scatter_(0, first, torch.inf)
    value, second = basins.min(0)
    r = _refine(grid.gather(0, first)[0], step, a, b, c)
    two = value.isfinite().nonzero().squeeze(-1)
    centre = grid[second[two], two]
    other = _refine(centre, step[two], a[two], b[two], c[two])
    lower = _reduced(other, a[two], b[two], c[two]) < _reduced(r[two], a[two], b[two], c[two])
    r[two] = torch.where(lower, other, r[two])
    return r.reshape(shape)


def _reduced(r: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    up = (2 * r).exp()
    return up + 1 / up - 2 * (a * a * up + b * b / up + 2 * c).clamp(min=0).sqrt()


def _refine(start: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Newton on f' inside a shrinking bracket, bisected wherever Newton would leave it."""
    result, tiny = start.clone(), torch.finfo(start.dtype).tiny
    active = torch.arange(len(start), device=start.device)
    r, low, high, a2, b2, c2 = start, start - step, start + step, a * a, b * b, 2 * c
    for _ in range(_NEWTON_STEPS):
        up = (2 * r).exp()
        down, plus = 1 / up, a2 * up
        minus = b2 * down
        both, size = plus + minus, (plus + minus + c2).clamp(min=tiny).sqrt()
        slope = 2 * (up - down - (plus - minus) / size)
        bend = 4 * (up + down - both / size) + 2 * (plus - minus).square() / size**3
        low, high = torch.where(slope < 0, r, low), torch.where(slope < 0, high, r)
        newton = r - slope / bend
        new = torch.where((bend > 0) & (newton > low) & (newton < high), newton, 0.5 * (low + high))
        moving = (new - r).abs() > 1e-15
        result[active] = new
        if not moving.any():
            break
        active, r, low, high, a2, b2, c2 = (x[moving] for x in (active, new, low, high, a2, b2, c2))
    return result
