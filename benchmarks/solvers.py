"""Stage 2 against the published algorithm: time ratios of one run, and whether the objective is never higher.

    python benchmarks/solvers.py [--rounds N]

One thread, best of N, processor time. The baseline on GL(n) is timed twice: on the full d-wide factors with autograd,
as one would write it from the paper, and on our reduced factors with a hand-written gradient, as `--method paper` does
it here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from timing import best_of as best_wall
from torch import Tensor

from isobasin.matching import paper, rotary, subspace
from isobasin.symmetries.bilinear import BilinearGroup, Roles
from isobasin.symmetries.groups import pair_factors

HEADS, WIDTH, FEATURES = 12, 768, 64  # a BERT-base layer
PLANES = 65_536

Sides = tuple[Tensor, Tensor, Tensor, Tensor]
best_of = partial(best_wall, clock=time.process_time)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gl_pairs(generator: torch.Generator) -> dict[str, Sides]:
    """Sides `(A_L, B_L, A_R, B_R)` of one layer's Q-K (with the query bias row), by kind of pair."""

    def side(rows: int = WIDTH) -> Tensor:
        return 0.02 * normal(generator, HEADS, rows, FEATURES)

    left, right = side(WIDTH + 1), side()
    (maps,) = pair_factors("pair", BilinearGroup(FEATURES), Roles(("left",), ("right",)), (HEADS,))
    u, steep = (maps.sample(generator, condition=condition)["pair.matrix"] for condition in (100.0, 1e3))
    moved_left, moved_right = left @ u.mT, torch.linalg.solve(u, right, left=False)
    return {
        "planted, condition 1e3": (left @ steep.mT, left, torch.linalg.solve(steep, right, left=False), right),
        "planted, condition 100, + 10 % noise": (
            moved_left + 0.1 * side(WIDTH + 1),
            left,
            moved_right + 0.1 * side(),
            right,
        ),
        "retrained (as far from each other as from 0)": (left + side(WIDTH + 1), left, right + side(), right),
        "independent": (side(WIDTH + 1), left, side(), right),
    }


def published(sides: Sides, steps: int = 500, learning_rate: float = 1e-2) -> Tensor:
    """The objective after Adam on the full factors by autograd, from the orthogonal start."""
    a_left, b_left, a_right, b_right = sides
    u = subspace.polar(a_left.mT @ b_left + a_right.mT @ b_right).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=learning_rate)

    def objective() -> Tensor:
        left = a_left - b_left @ u.mT
        right = a_right - b_right @ torch.linalg.inv(u)
        return left.square().sum((-2, -1)) + right.square().sum((-2, -1))

    for _ in range(steps):
        optimizer.zero_grad()
        objective().sum().backward()
        optimizer.step()
    return objective().detach()


def bench_gl(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    print(f"GL({FEATURES}), {HEADS} heads, d = {WIDTH}: 500 Adam steps / Gauss-Newton")
    for name, sides in gl_pairs(generator).items():

        def run(solver: Callable[..., subspace.SubspaceSolution], sides: Sides = sides) -> Tensor:
            a_left, b_left, a_right, b_right = sides
            return solver(subspace.reduce(a_left, b_left, a_right, b_right)).objective

        newton, f = best_of(rounds, lambda run=run: run(subspace.gauss_newton))
        reduced, f_reduced = best_of(1, lambda run=run: run(paper.gradient_descent))
        full, f_full = best_of(1, lambda sides=sides: published(sides))
        scale = sum(x.square().sum((-2, -1)) for x in (sides[0], sides[2]))
        excess = max(float(((f - g) / scale).max()) for g in (f_reduced, f_full))
        print(
            f"  {name:44s} Gauss-Newton {newton:6.3f} s   published {full:6.2f} s = {full / newton:5.1f}x   reduced "
            f"{reduced:6.2f} s = {reduced / newton:5.1f}x   f {float((f / scale).mean()):.3g} / "
            f"{float((f_full / scale).mean()):.3g} / {float((f_reduced / scale).mean()):.3g}   "
            f"worst head, (Gauss-Newton - published) / ||A||² = {excess:.1e}"
        )


def count_heads() -> None:
    """On how many of 200 unrelated heads of each size one ends above the other."""
    for n in (4, 8, 16, 32):
        generator = torch.Generator().manual_seed(0)
        problem = subspace.reduce(*(normal(generator, 200, 4 * n, n) for _ in range(4)))
        ours, theirs = subspace.gauss_newton(problem).objective, paper.gradient_descent(problem).objective
        above, below = (int((x > y * (1 + 1e-6)).sum()) for x, y in ((ours, theirs), (theirs, ours)))
        print(
            f"GL({n}), 200 unrelated heads: Gauss-Newton ends above on {above}, by "
            f"{float((ours / theirs).max()) - 1:.1e} at most; the published one on {below}"
        )


def bench_rotary(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)

    # Heads of one slot, the first half of whose features are the real parts of their planes.
    half = FEATURES // 2
    heads = PLANES // half

    def columns() -> Tensor:
        spread = normal(generator, heads, 1, 1, half).exp().repeat(1, 1, 1, 2)
        return normal(generator, heads, 1, 16, FEATURES) * spread

    places = slice(0, half), slice(half, FEATURES)
    problem = rotary.PlaneProblem.of(columns(), columns(), columns(), columns(), places)
    ours, u = best_of(rounds, lambda: rotary.align_planes(problem))
    brent, v = best_of(1, lambda: paper.brent_planes(problem))
    gap = (problem.objective(u) - problem.objective(v)) / (problem.eta_left * problem.eta_right).sqrt()
    print(
        f"H, {PLANES} planes: all at once {ours:.3f} s   scalar Brent {brent:.2f} s = {brent / ours:.1f}x   "
        f"worst plane, (all at once - Brent) / scale = {float(gap.max()):.1e}; "
        f"Brent higher by > 1e-6 on {int((gap < -1e-6).sum())}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench_gl(arguments.rounds)
    count_heads()
    bench_rotary(arguments.rounds)
