"""The published stage 2, kept as the baseline that ours is compared with.

arXiv 2606.17830, section 3: on GL(n) the orthogonal Procrustes start and gradient descent (here Adam, 500 steps,
on the reduced factors, which changes nothing but the time); under rotary positions Brent's method on one scalar
per plane. No official code is known; the step size is ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobasin.matching.rotary import PlaneProblem
from isobasin.matching.subspace import Core, SubspaceSolution, orthogonal_start


def gradient_descent(core: Core, steps: int = 500, learning_rate: float = 1e-2) -> SubspaceSolution:
    """Adam on f(U) from the orthogonal start; the best point seen is returned, so f never ends above its start."""
    u = orthogonal_start(core)
    best, best_f = u, core.objective(u)
    mean, square = torch.zeros_like(u), torch.zeros_like(u)
    for step in range(1, steps + 1):
        gradient, f = _gradient(core, u)
        better = (f < best_f).unsqueeze(-1).unsqueeze(-1)
        best, best_f = torch.where(better, u, best), torch.where(better[..., 0, 0], f, best_f)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        scaled = (square / (1 - 0.999**step)).sqrt() + 1e-12
        u = u - learning_rate * mean / (1 - 0.9**step) / scaled
    count = torch.full_like(best_f, steps, dtype=torch.int64)
    return SubspaceSolution(best, best_f, count, torch.ones_like(best_f, dtype=torch.bool))


def _gradient(core: Core, u: Tensor) -> tuple[Tensor, Tensor]:
    """`(∇f, f)` at U; f is infinite where U is singular."""
    inverse = torch.linalg.inv_ex(u).inverse
    left, right = core.b_left @ u.mT, core.b_right @ inverse
    error_left, error_right = core.a_left - left, core.a_right - right
    gradient = 2 * (right.mT @ error_right @ inverse.mT - error_left.mT @ core.b_left)
    f = error_left.square().sum((-2, -1)) + error_right.square().sum((-2, -1)) + core.constant
    return gradient.nan_to_num(0, 0, 0), f.nan_to_num(torch.inf, torch.inf)


def brent_planes(problem: PlaneProblem) -> Tensor:
    """U of every plane by a scalar Brent search over ln x; it may stop in the higher of two minima."""
    parts = (problem.eta_left, problem.eta_right, problem.gamma_left, problem.gamma_right)
    shape = problem.eta_left.shape
    columns = [x.flatten().cpu().numpy() for x in parts]
    u = np.array([_brent(*column) for column in zip(*columns, strict=True)], dtype=np.complex128)
    return torch.from_numpy(u).reshape(shape).to(problem.gamma_left.device)


def _brent(eta_left: float, eta_right: float, gamma_left: complex, gamma_right: complex) -> complex:
    if eta_left == 0 or eta_right == 0:
        return 1

    def turned(log_x: float) -> complex:
        return math.exp(log_x / 2) * gamma_left + math.exp(-log_x / 2) * gamma_right

    def f(log_x: float) -> float:
        return math.exp(log_x) * eta_left + math.exp(-log_x) * eta_right - 2 * abs(turned(log_x))

    from scipy.optimize import minimize_scalar

    middle = 0.5 * (math.log(eta_right) - math.log(eta_left))
    found: Any = minimize_scalar(f, bracket=(middle - 1, middle + 1), tol=1e-12)
    log_x = float(found.x)
    turn = turned(log_x)
    return math.exp(log_x / 2) * (turn / abs(turn) if turn else 1)
