"""Matching of feed-forward blocks against brute force, and recovery of planted elements."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from test_feedforward import element, make_block
from torch import Tensor

from isobasin.matching import assignment, feedforward, nearest, scales, units as matching
from isobasin.matching.assignment import linear_sum_assignment
from isobasin.matching.feedforward import distance, match_feedforward, unit_sizes
from isobasin.matching.nearest import plain_partners
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.testing.strategies import conditions, seeds

KINDS = [
    ("gelu", False),
    ("tanh", False),
    ("relu", False),
    ("relu2", False),
    ("silu", True),
    ("tanh", True),
    ("relu", True),
    ("relu2", True),
]
ONE_SCALE = [kind for kind in KINDS if kind not in (("relu", True), ("relu2", True))]


def squared(a: FeedForwardWeights, b: FeedForwardWeights) -> float:
    return distance(a, b) ** 2


def lowest(group: FeedForwardGroup, a: FeedForwardWeights, b: FeedForwardWeights, unit: int, other: int) -> float:
    """The least squared distance of a pair of units over their scales, by search alone: ever finer grids."""

    def rows(weights: FeedForwardWeights, i: int) -> FeedForwardWeights:
        parts = {n: t[i : i + 1].unsqueeze(0) for n, t in weights.tensors().items() if n != "down_bias"}
        return FeedForwardWeights(**parts)

    one, two = rows(a, unit), rows(b, other)
    single = FeedForwardGroup(1, group.up, group.gate, group.degree)

    def at(s: Tensor, r: float) -> Tensor:
        scales = s.unsqueeze(-1), torch.full_like(s, r).unsqueeze(-1)
        g = single.identity((len(s),)).having(dict(zip(("up", "gate"), scales, strict=True)))
        moved = single.act(g, two.map(lambda t: t.expand(len(s), *t.shape[1:]))).tensors()
        return torch.stack([(t - moved[n]).square().flatten(1).sum(-1) for n, t in one.tensors().items()]).sum(0)

    best = math.inf
    for sign, r in itertools.product(SIGNS[group.up], SIGNS[group.gate]):
        centres, width = [0.0], 9.0 if group.up.dimension else 0.0
        for _ in range(6):
            x = torch.cat([c + width * torch.linspace(-1, 1, 201, dtype=torch.float64) for c in centres])
            values = at(sign * x.exp(), r)
            best, centres, width = min(best, values.min().item()), x[values.argsort()[:3]].tolist(), width / 50
    return best


SIGNS = {None: (1.0,), **{kind: (1.0, -1.0) if kind in (Scale.sign, Scale.signed) else (1.0,) for kind in Scale}}


@pytest.mark.parametrize(("activation", "gated"), ONE_SCALE)
@pytest.mark.parametrize(("units", "bias", "seed"), [(1, True, 0), (3, False, 1), (4, True, 2), (5, True, 3)])
def test_no_permutation_with_any_scales_is_nearer(activation: str, gated: bool, units: int, bias: bool, seed: int):
    """All permutations, each pair of units at the best scales that a search finds."""
    a, b = (make_block(activation, units, 3, 10 * seed + i, gated=gated, bias=bias) for i in range(2))
    group = a.group
    # Norms that differ a lot make problems with two minima.
    reference = a.weights.map(lambda t: t * (3.0 if t.ndim == 2 else 1.0))
    costs = [[lowest(group, reference, b.weights, i, j) for j in range(units)] for i in range(units)]
    least = min(sum(costs[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(units)))
    rest = (reference.down_bias - b.weights.down_bias).square().sum().item() if bias else 0.0
    found = match_feedforward(group, reference, b.weights)
    assert group.contains(found.element)
    assert squared(reference, found.moved) == pytest.approx(least + rest, rel=1e-9)


@given(st.sampled_from(KINDS), seeds(), seeds(), conditions(1e6), st.booleans())
def test_planted_elements_are_recovered(kind: tuple[str, bool], seed: int, other: int, condition: float, bias: bool):
    """Permutation and scales, of both signs, up to ratios of 1e6: scales from 1e-3 to 1e3."""
    block = make_block(kind[0], 6, 5, seed, gated=kind[1], bias=bias)
    planted = element(block.group, other, condition)
    moved = block.group.act(planted, block.weights)
    found = match_feedforward(block.group, block.weights, moved)
    undone = block.group.compose(found.element, planted)
    assert torch.equal(undone.permutation, torch.arange(6))
    for found_scales in (undone.parts["up"], undone.parts["gate"]):
        torch.testing.assert_close(found_scales, torch.ones(6).double(), rtol=1e-10, atol=0)
    for name, tensor in block.weights.tensors().items():
        assert (getattr(found.moved, name) - tensor).norm() <= 1e-10 * tensor.norm(), name


@pytest.mark.parametrize(("activation", "gated"), KINDS)
def test_a_second_pass_changes_nothing(activation: str, gated: bool):
    a, b = (make_block(activation, 8, 4, seed, gated=gated) for seed in (3, 4))
    first = match_feedforward(a.group, a.weights, b.weights)
    assert distance(a.weights, first.moved) < distance(a.weights, b.weights)
    second = match_feedforward(a.group, a.weights, first.moved)
    assert torch.equal(second.element.permutation, torch.arange(8))
    for found_scales in (second.element.parts["up"], second.element.parts["gate"]):
        torch.testing.assert_close(found_scales, torch.ones(8).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("gated", [False, True])
def test_two_scales_end_at_least_where_no_step_is_better(gated: bool):
    """ReGLU: no change of any scale of the result, alone or together, is nearer."""
    a, b = (make_block("relu", 5, 4, seed, gated=gated) for seed in (5, 6))
    found = match_feedforward(a.group, a.weights, b.weights)
    reached = squared(a.weights, found.moved)
    for up, gate in itertools.product((0.9, 0.999, 1.0, 1.001, 1.1), repeat=2):
        scales = torch.full((5,), up).double(), torch.full((5,), gate if gated else 1.0).double()
        g = a.group.identity().having(dict(zip(("up", "gate"), scales, strict=True)))
        assert squared(a.weights, a.group.act(g, found.moved)) >= reached * (1 - 1e-12)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 1e3])
def test_the_scalar_problem_is_solved_to_its_global_minimum(m: int, size: float):
    """No point of a fine grid is lower, whatever the signs, and the slope is zero."""
    generator = torch.Generator().manual_seed(m)
    p, q = size * torch.randn(2, 3000, generator=generator, dtype=torch.float64)
    w = scales.lowest(p, q, m)
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64).exp().unsqueeze(-1)
    value, least = scales.reduced(w, p, q, m), scales.reduced(grid, p, q, m).amin(0)
    assert bool((value <= least + 1e-12 * (1 + least.abs())).all())
    slope = w - p - m * w ** (-2 * m - 1) + m * q * w ** (-m - 1)
    assert bool((slope.abs() <= 1e-9 * (w + p.abs() + m * (1 + q.abs() * w**m) * w ** (-2 * m - 1))).all())


@given(st.sampled_from(KINDS), seeds(), seeds(), st.sampled_from([0.0, 0.05]), st.integers(0, 2))
def test_plain_partners_are_those_of_least_cost(
    kind: tuple[str, bool], seed: int, other: int, noise: float, strangers: int
):
    """As by the costs of all pairs: of near units, some that aren't, and two that float32 can't tell apart."""
    block, far = (make_block(kind[0], 64, 24, s, gated=kind[1], bias=False) for s in (seed, seed + 1))
    for name, rows in block.weights.tensors().items():
        rows[1] = rows[0] + 1e-6 * getattr(far.weights, name)[0]
    parts = {name: rows + noise * getattr(far.weights, name) for name, rows in block.weights.tensors().items()}
    for name, rows in parts.items():
        rows[2 : 2 + strangers] = getattr(far.weights, name)[:strangers]
    moved = block.group.act(element(block.group, other, 10.0), FeedForwardWeights(**parts))
    a, b = feedforward.branches(block.weights), feedforward.branches(moved)
    found = plain_partners(a, b, lambda i, j: matching._distances(block.group, a, b, i, j))
    assert found is not None
    assert {0, 1} <= set(found[1].tolist())
    assert len(found[1]) <= 2 + strangers
    least = linear_sum_assignment(matching.unit_costs(block.group, a, b))[1]
    assert matching.partners(block.group, a, b)[0].tolist() == least.tolist()


@given(st.sampled_from(KINDS), seeds(), st.booleans(), st.sampled_from([1.0, 1e-4, 1e4]))
def test_float32_makes_no_pair_dearer_than_is_said(kind: tuple[str, bool], seed: int, bias: bool, size: float):
    """Of units of many sizes, of one sign so that roundings add up, alike ones and zeros among them."""
    a, b = (make_block(kind[0], 40, 24, s, gated=kind[1], bias=bias) for s in (seed, seed + 1))
    draw = torch.Generator().manual_seed(seed)
    for block in (a, b):
        for rows in block.weights.tensors().values():
            if rows.ndim == 2:
                rows.abs_().mul_(size * (2 * torch.randn(40, 1, generator=draw, dtype=torch.float64)).exp())
    for name, rows in a.weights.tensors().items():
        if rows.ndim == 2:
            rows[:5] = getattr(b.weights, name)[5:10]
            rows[5:7] = 0
    sides = feedforward.branches(a.weights), feedforward.branches(b.weights)
    assert matching._bounded(a.group, *sides) == (kind in ONE_SCALE)
    rough, costs = matching._rough(a.group, *sides), matching.unit_costs(a.group, *sides)
    rows, columns = (torch.arange(40).repeat_interleave(40), torch.arange(40).repeat(40))
    exact = rough.exact(rows.numpy(), columns.numpy()).reshape(40, 40)
    np.testing.assert_allclose(exact, costs, rtol=1e-9, atol=1e-12 * np.abs(costs).max())
    if kind in ONE_SCALE:
        blur = np.stack([rough.blur(column) for column in exact.T], 1)
        assert (rough.costs - exact <= blur).all()
        sizes = sum(branch.square().sum(-1, keepdim=True) for branch in sides[0].values())
        assert (blur <= 1e-3 * (sizes.numpy() + np.abs(exact))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_large_blocks_are_assigned_as_by_the_costs_in_float64(kind: tuple[str, bool], monkeypatch: pytest.MonkeyPatch):
    """Units that float32 can't tell apart, twins and zeros among them."""
    a, b = (make_block(kind[0], 96, 8, seed, gated=kind[1], bias=False) for seed in (1, 2))
    draw = torch.Generator().manual_seed(0)
    for name, rows in a.weights.tensors().items():
        rows[:24] = rows[24:48] + 1e-9 * torch.randn(24, 8, generator=draw, dtype=torch.float64)
        getattr(b.weights, name)[:30] = getattr(b.weights, name)[30:60] * (1 + 1e-9)
        rows[90:], getattr(b.weights, name)[92:] = 0, 0
    sides = feedforward.branches(a.weights), feedforward.branches(b.weights)
    costs = matching.unit_costs(a.group, *sides)
    least = costs[linear_sum_assignment(costs)].sum()
    for name, value in {"_SMALL": 20, "_CANDIDATES": 3, "_MORE": 2}.items():
        monkeypatch.setattr(assignment, name, value)
    if kind in ONE_SCALE:
        monkeypatch.delattr(matching, "linear_sum_assignment")
    found, _ = matching.partners(a.group, *sides)
    assert costs[np.arange(96), found.numpy()].sum() == pytest.approx(least, rel=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rough_match_is_nearly_the_best_and_says_so(kind: tuple[str, bool], monkeypatch: pytest.MonkeyPatch):
    a, b = (make_block(kind[0], 96, 24, seed, gated=kind[1]) for seed in (1, 2))
    for name, value in {"_SMALL": 20, "_CANDIDATES": 12, "_MORE": 12}.items():
        monkeypatch.setattr(assignment, name, value)
    best, rough = (match_feedforward(a.group, a.weights, b.weights, rough=rough) for rough in (False, True))
    assert not best.rough
    assert rough.rough == (kind in ONE_SCALE)
    before, least, near = (distance(a.weights, x) for x in (b.weights, best.moved, rough.moved))
    assert least <= near * (1 + 1e-12)
    assert near - least <= 0.01 * (before - least)
    # Where partners are plain to see a match is exact, asked for roughly or not.
    moved = a.group.act(element(a.group, 3), a.weights)
    again = match_feedforward(a.group, a.weights, moved, rough=True)
    assert not again.rough
    assert distance(again.moved, a.weights) <= 1e-9 * before


def test_unlike_units_are_no_plain_partners():
    a, b = (feedforward.branches(make_block("silu", 64, 24, seed, gated=True).weights) for seed in (1, 2))
    group = make_block("silu", 64, 24, 1, gated=True).group
    assert plain_partners(a, b, lambda i, j: matching._distances(group, a, b, i, j)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_no_difference(kind: tuple[str, bool], monkeypatch: pytest.MonkeyPatch):
    a, b = (make_block(kind[0], 9, 4, seed, gated=kind[1]) for seed in (7, 8))
    whole = match_feedforward(a.group, a.weights, b.weights).element
    monkeypatch.setattr(matching, "_PAIRS", 20)
    monkeypatch.setattr(nearest, "_PAIRS", 20)
    pieces = match_feedforward(a.group, a.weights, b.weights).element
    for name, part in whole.tensors().items():
        torch.testing.assert_close(part, pieces.tensors()[name], rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["up", "down"])
def test_of_units_of_zeros_the_other_weights_say_the_scale(name: str):
    a, b = (make_block("relu", 4, 3, seed, gated=False, bias=False) for seed in (1, 2))
    getattr(b.weights, name)[2] = 0
    getattr(a.weights, name)[0] = 0
    found = match_feedforward(a.group, a.weights, b.weights)
    place = found.element.permutation == 2
    other = "down" if name == "up" else "up"
    ours, theirs = getattr(a.weights, other)[place], getattr(b.weights, other)[2]
    share = float((ours * theirs).sum() / theirs.square().sum())
    scale = max(share, 1 / 64) if share > 0 else 1.0  # scales of ReLU are positive
    assert found.element.parts["up"][place].item() == pytest.approx(1 / scale if name == "up" else scale)
    assert all(t.isfinite().all() for t in found.moved.tensors().values())


@pytest.mark.parametrize("name", ["up", "down"])
def test_units_of_zeros_alone_keep_their_scale(name: str):
    a, b = (make_block("relu", 4, 3, seed, gated=False, bias=False) for seed in (1, 2))
    for part in ("up", "down"):
        getattr(b.weights, part)[2] = 0
    getattr(a.weights, name)[0] = 0
    found = match_feedforward(a.group, a.weights, b.weights)
    assert found.element.parts["up"][found.element.permutation == 2].item() == 1
    assert all(t.isfinite().all() for t in found.moved.tensors().values())


@given(st.sampled_from(KINDS), seeds(), seeds())
def test_sizes_of_units_are_invariant(kind: tuple[str, bool], seed: int, other: int):
    block = make_block(kind[0], 5, 3, seed, gated=kind[1])
    moved = block.group.act(element(block.group, other, 1e3), block.weights)
    before, after = unit_sizes(block.group, block.weights), unit_sizes(block.group, moved)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=0)
    unrelated = make_block(kind[0], 5, 3, seed + 1, gated=kind[1])
    assert not torch.allclose(before, unit_sizes(block.group, unrelated.weights), rtol=1e-3)


def test_what_matching_reads_is_not_changed():
    a, b = (make_block("silu", 4, 3, seed, gated=True) for seed in (1, 2))
    before = [w.map(torch.clone) for w in (a.weights, b.weights)]
    match_feedforward(a.group, a.weights, b.weights)
    for weights, copy in zip((a.weights, b.weights), before, strict=True):
        assert all(torch.equal(t, getattr(copy, n)) for n, t in weights.tensors().items())
