"""What the solver on GL(n) promises, on random and planted problems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from isobasin.matching import newton, paper, subspace
from isobasin.testing.strategies import conditions, seeds


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def core(seed: int, n: int, rows: int, noise: float, condition: float, heads: int = 3) -> subspace.Core:
    """Reference factors that are the model's moved by a map of the given condition, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    b_left, b_right = normal(generator, heads, rows, n), normal(generator, heads, rows, n)
    u = torch.linalg.qr(normal(generator, heads, n, n)).Q * condition ** torch.linspace(-0.5, 0.5, n).double()
    a_left = b_left @ u.mT + noise * normal(generator, heads, rows, n)
    a_right = b_right @ torch.linalg.inv(u) + noise * normal(generator, heads, rows, n)
    return subspace.reduce(a_left, b_left, a_right, b_right)


problems = st.builds(
    core, seeds(), st.integers(1, 6), st.integers(6, 14), st.sampled_from([0.0, 0.1, 1.0]), conditions()
)


@settings(max_examples=8)
@given(problems)
def test_newton_never_ends_above_the_paper_or_either_start(problem: subspace.Core):
    found = subspace.gauss_newton(problem)
    floor = 1e-20 * problem.scale()
    for other in (
        paper.gradient_descent(problem).objective,
        problem.objective(subspace.orthogonal_start(problem)),
        problem.objective(subspace.balanced_start(problem)),
    ):
        assert (found.objective <= other * (1 + 1e-6) + floor).all()
    torch.testing.assert_close(problem.objective(found.matrix), found.objective, rtol=1e-8, atol=float(floor.max()))


def unrelated(heads: int, n: int, seed: int) -> subspace.Core:
    generator = torch.Generator().manual_seed(seed)
    return subspace.reduce(*(normal(generator, heads, 4 * n, n) for _ in range(4)))


@pytest.mark.parametrize(("n", "above"), [(4, 0), (8, 0)])
def test_newton_ends_above_the_paper_on_hardly_any_unrelated_heads(n: int, above: int):
    """Of 200 heads each; from one start alone some 4 % do, by up to 4 %. On more of them the paper ends above.

    Larger heads: benchmarks/solvers.py.
    """
    problem = unrelated(200, n, 0)
    ours, published = subspace.gauss_newton(problem).objective, paper.gradient_descent(problem).objective
    assert int((ours > published * (1 + 1e-6)).sum()) <= above
    assert (ours <= published * 1.01).all()
    assert int((published > ours * (1 + 1e-6)).sum()) >= 20


@pytest.mark.parametrize("n", [4, 16])
def test_two_starts_at_one_place_are_followed_once(n: int, monkeypatch: pytest.MonkeyPatch):
    """Which saves a tenth of the steps or more, and changes no end but by what the tolerance leaves."""
    problem, taken = unrelated(100, n, 0), []
    step = newton._step

    def counted(some: newton.Problems, fresh: bool, tolerance: float) -> Tensor:
        taken.append(len(some.f))
        return step(some, fresh, tolerance)

    monkeypatch.setattr(newton, "_step", counted)
    once, steps = subspace.gauss_newton(problem).objective, sum(taken)
    taken.clear()
    monkeypatch.setattr(newton, "_SAME", 0.0)
    twice = subspace.gauss_newton(problem).objective
    assert steps < 0.9 * sum(taken)
    assert ((once - twice).abs() <= 1e-6 * problem.scale()).all()


def test_heads_that_are_near_and_far_are_solved_beside_each_other():
    """Each as it is by itself, in its place."""
    near, far = core(0, 6, 24, 0.01, 10.0, heads=2), unrelated(3, 6, 0)
    order = torch.tensor([2, 0, 3, 4, 1])
    both = (torch.cat(pair)[order] for pair in zip(vars(near).values(), vars(far).values(), strict=True))
    found = subspace.gauss_newton(subspace.Core(*both))
    for name, alone in vars(subspace.gauss_newton(near)).items():
        expected = torch.cat([alone, getattr(subspace.gauss_newton(far), name)])[order]
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-6, atol=1e-9)


@given(problems)
def test_newton_ends_where_no_small_step_helps(problem: subspace.Core):
    found = subspace.gauss_newton(problem)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        step = normal(generator, *found.matrix.shape) * 1e-4
        nearby = problem.objective(found.matrix + step @ found.matrix)
        above = nearby >= found.objective * (1 - 1e-6) - 1e-20 * problem.scale()
        assert (above | ~found.converged).all()


@given(seeds(), st.integers(1, 8), conditions())
def test_newton_recovers_a_planted_map(seed: int, n: int, condition: float):
    problem = core(seed, n, 12, 0.0, condition)
    found = subspace.gauss_newton(problem)
    assert (found.objective <= 1e-18 * problem.scale()).all()
    assert found.converged.all()


def full_objective(u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return (a - b @ u.mT).square().sum((-2, -1)) + (c - d @ torch.linalg.inv(u)).square().sum((-2, -1))


@given(seeds(), st.integers(1, 5), st.integers(1, 9))
def test_reduction_keeps_the_objective(seed: int, n: int, rows: int):
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = (normal(generator, 2, rows, n) for _ in range(4))
    u = normal(generator, 2, n, n) + 2 * torch.eye(n)
    expected = full_objective(u, a, b, c, d)
    torch.testing.assert_close(subspace.reduce(a, b, c, d).objective(u), expected, rtol=1e-8, atol=1e-8)


@given(problems, st.sampled_from([1.0, 3.0, 50.0, 1e6]))
def test_capping_honours_the_limit(problem: subspace.Core, limit: float):
    free = subspace.gauss_newton(problem)
    capped = subspace.cap_condition(problem, free.matrix, limit)
    singular = torch.linalg.svdvals(capped)
    assert (singular[:, 0] <= limit * singular[:, -1] * (1 + 1e-9)).all()
    start = problem.objective(subspace.orthogonal_start(problem))
    value = problem.objective(capped)
    assert (value <= start * (1 + 1e-9) + 1e-12 * problem.scale()).all()
    assert (value >= free.objective * (1 - 1e-9) - 1e-26 * problem.scale()).all()
    within = torch.linalg.cond(free.matrix) <= limit
    assert torch.equal(capped[within], free.matrix[within])


def test_capping_all_heads_of_several_layers():
    """Heads have two leading dimensions where their layers are fitted at once."""
    flat = core(0, 3, 8, 0.1, 100.0, heads=6)
    layers = subspace.Core(*(x.unflatten(0, (2, 3)) for x in vars(flat).values()))
    matrix = subspace.gauss_newton(flat).matrix
    expected = subspace.cap_condition(flat, matrix, 2.0)
    assert (torch.linalg.cond(matrix) > 2).all()
    torch.testing.assert_close(subspace.cap_condition(layers, matrix.unflatten(0, (2, 3)), 2.0).flatten(0, 1), expected)
