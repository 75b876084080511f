"""Large assignments by the pairs that matter: as cheap as those of all pairs, and the same where one is best."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from isobasin.matching import assignment, scales

_ROWS = 150


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large here, with few pairs to look at, so that rounds add some."""
    for name, value in {"_SMALL": 20, "_CANDIDATES": 3, "_MORE": 2, "_NUMBERS": 1000}.items():
        monkeypatch.setattr(assignment, name, value)


def _costs(kind: str, seed: int = 0) -> np.ndarray:
    """Squared distances of rows, less those of the first ones' norms."""
    draw = np.random.default_rng(seed)
    a, b = (draw.standard_normal((_ROWS, 40)) for _ in range(2))
    if kind == "sizes":
        a, b = (x * np.exp(draw.standard_normal((_ROWS, 1))) for x in (a, b))
    if kind == "near":
        b = (a + b)[draw.permutation(_ROWS)]
    if kind == "line":
        a, b = a[:, :1], b[:, :1]
    if kind == "dead":
        a[: _ROWS // 3], b[_ROWS // 2 :] = 0, 0
    if kind == "twins":
        a[: _ROWS // 2], b[: _ROWS // 2] = a[-(_ROWS // 2) :], b[-(_ROWS // 2) :]
    if kind == "whole numbers":
        return draw.integers(0, 9, (_ROWS, _ROWS)).astype(float)
    if kind == "far from zero":
        return 1e6 + (b * b).sum(1) - 2 * a @ b.T
    if kind == "small":
        return 1e-30 * a @ b.T
    return (b * b).sum(1) - 2 * a @ b.T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["plain", "sizes", "near", "line", "far from zero", "small"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_assignment_of_a_part_of_the_pairs_is_that_of_all(kind: str, seed: int, maximize: bool) -> None:
    costs = _costs(kind, seed)
    best = scipy.optimize.linear_sum_assignment(costs, maximize)[1]
    found = assignment.by_candidates(-costs if maximize else costs)
    assert found is not None
    assert np.array_equal(found, best)
    rows, columns = assignment.linear_sum_assignment(costs, maximize=maximize)
    assert np.array_equal(rows, np.arange(_ROWS))
    assert np.array_equal(columns, best)


def _rough(costs: np.ndarray, blur: float, asked: list[np.ndarray], seed: int = 0) -> assignment.Rough:
    """Costs that are wrong by less than a blur, and a note of the places that were asked for."""
    draw = np.random.default_rng(seed)

    def exact(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        asked.append(rows * len(costs) + columns)
        return costs[rows, columns]

    wrong = (costs + blur * draw.uniform(-1, 1, costs.shape)).astype(np.float32)
    return assignment.Rough(wrong, exact, lambda price: np.full(len(price), 1.001 * blur))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blur", [1e-6, 0.3, 3.0])
@pytest.mark.parametrize("kind", ["plain", "sizes", "near", "twins"])
def test_rough_costs_are_made_exact_where_they_decide(
    kind: str, blur: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimum of the exact costs, though that of the rough ones is another; no cost is asked for twice."""
    for name in ("_EXACT", "_SHARE", "_ROUNDS"):
        monkeypatch.setattr(assignment, name, _ROWS)
    costs, asked = _costs(kind, seed), list[np.ndarray]()
    # Costs in single precision are wrong by more than 1e-6 themselves.
    rough, rows = _rough(costs, max(blur, 1e-6 * np.abs(costs).max()), asked, seed), np.arange(_ROWS)
    found = assignment.by_candidates(rough)
    assert found is not None
    least = costs[scipy.optimize.linear_sum_assignment(costs)].sum()
    assert costs[rows, found].sum() == pytest.approx(least, rel=1e-11)
    places = np.concatenate(asked)
    assert len(np.unique(places)) == len(places)
    if blur < 1 and kind in ("plain", "sizes", "near"):
        assert len(places) < costs.size / 10
    if blur == 3.0 and kind in ("plain", "sizes"):
        quick = scipy.optimize.linear_sum_assignment(rough.costs)
        assert costs[quick].sum() > least + 1


def test_rough_costs_that_decide_nowhere_are_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "_EXACT", 5)
    assert assignment.by_candidates(_rough(_costs("plain"), 100.0, [])) is None
    assert assignment.by_candidates(_rough(np.full((30, 30), 2.0), 0.0, [])) is None


@pytest.mark.parametrize("kind", ["dead", "twins", "whole numbers"])
def test_among_equal_costs_an_assignment_of_the_least_is_found(kind: str) -> None:
    costs = _costs(kind)
    best = costs[scipy.optimize.linear_sum_assignment(costs)].sum()
    found = assignment.by_candidates(costs)
    assert found is not None
    assert np.array_equal(np.sort(found), np.arange(_ROWS))
    assert costs[np.arange(_ROWS), found].sum() == pytest.approx(best, rel=1e-11)


def test_costs_that_are_all_equal_are_assigned_as_they_lie() -> None:
    assert np.array_equal(assignment.linear_sum_assignment(np.full((30, 30), 2.0))[1], np.arange(30))


def test_what_the_pairs_are_no_help_for_is_left_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = _costs("sizes")
    best = scipy.optimize.linear_sum_assignment(costs)[1]
    monkeypatch.setattr(assignment, "_ROUNDS", 1)
    assert assignment.by_candidates(costs) is None
    assert np.array_equal(assignment.linear_sum_assignment(costs)[1], best)
    costs[0, 0] = np.inf
    assert np.array_equal(assignment.linear_sum_assignment(costs)[1], scipy.optimize.linear_sum_assignment(costs)[1])


def test_the_scale_of_a_pair_in_closed_form_is_the_lowest_root() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(20000, generator=draw, dtype=torch.float64) for _ in range(2))
    quick, found = scales.hyperbolic(p, q)
    assert 0.1 < float(found.double().mean()) < 0.9  # where it isn't, Newton's steps have to find it
    exact = scales.lowest_root(p, q, 1)
    torch.testing.assert_close(quick[found], exact[found], rtol=1e-13, atol=0)
    torch.testing.assert_close(scales.lowest(p, q, 1), exact, rtol=1e-13, atol=0)
