"""Experts: group laws, the function that elements preserve, and matching against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from isobasin.matching import feedforward as matching
from isobasin.matching.feedforward import distance, match_feedforward
from isobasin.symmetries.feedforward import (
    FeedForwardElement,
    FeedForwardGroup,
    FeedForwardWeights,
    Scale,
    feed_forward,
)
from isobasin.testing.strategies import seeds

WIDTH = 5
SWIGLU = FeedForwardGroup(3, Scale.signed, Scale.none, experts=4, shift=WIDTH + 1)
GROUPS = (
    SWIGLU,
    # A router of sigmoids, which chooses among groups of experts.
    replace(SWIGLU, expert_groups=2, shift=0),
    FeedForwardGroup(3, Scale.none, None, experts=4, shift=WIDTH + 1),
    FeedForwardGroup(3, Scale.signed, Scale.positive, experts=2, shift=WIDTH + 1),
)
groups = st.sampled_from(GROUPS)


def block(group: FeedForwardGroup, seed: int) -> FeedForwardWeights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*group.batch, *shape, generator=generator, dtype=torch.float64)

    f = group.units
    parts = {"up": normal(f, WIDTH), "down": normal(f, WIDTH), "up_bias": normal(f), "down_bias": normal(WIDTH)}
    parts |= {"gate": normal(f, WIDTH), "gate_bias": normal(f)} if group.gate else {}
    routing = {"router": normal(WIDTH), "router_bias": normal(), "correction": normal()}
    return FeedForwardWeights(**parts, **routing)


def sample(group: FeedForwardGroup, seed: int) -> FeedForwardElement:
    return group.sample(torch.Generator().manual_seed(seed))


def assert_near(a: FeedForwardWeights, b: FeedForwardWeights) -> None:
    for name, x in a.tensors().items():
        torch.testing.assert_close(x, getattr(b, name), rtol=1e-9, atol=1e-9)


@given(groups, seeds())
def test_group_laws(group, seed):
    weights, one, two = block(group, seed), sample(group, seed + 1), sample(group, seed + 2)
    assert group.contains(one)
    moved = group.act(one, weights)
    both = group.compose(two, one)
    assert_near(group.act(two, moved), group.act(both, weights))
    assert_near(group.act(group.inverse(one), moved), weights)
    assert_near(group.act(group.identity(), weights), weights)
    three = sample(group, seed + 3)
    left = group.compose(three, both)
    right = group.compose(group.compose(three, two), one)
    for name, part in left.tensors().items():
        torch.testing.assert_close(part, right.tensors()[name])


@given(groups, seeds())
def test_elements_preserve_the_function(group, seed):
    weights = block(group, seed)
    moved = group.act(sample(group, seed + 1), weights)
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    activation = torch.relu if group.gate is Scale.positive else torch.nn.functional.silu
    scores = None if group.shift else torch.sigmoid
    outputs = [feed_forward(w, activation, hidden, None, scores) for w in (weights, moved)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    assert float((weights.up - moved.up).abs().max()) > 1e-3


def test_a_shift_is_seen_by_sigmoids():
    weights = block(SWIGLU, 0)
    element = SWIGLU.identity().having({"shift": torch.full((WIDTH + 1,), 0.1, dtype=torch.float64)})
    moved = SWIGLU.act(element, weights)
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    silu = torch.nn.functional.silu
    one, other = (feed_forward(w, silu, hidden, None, torch.sigmoid) for w in (weights, moved))
    assert not torch.allclose(one, other, atol=1e-3)


def test_experts_stay_in_their_groups():
    group = GROUPS[1]
    start = group.identity()
    for order, allowed in (([2, 3, 1, 0], True), ([0, 2, 1, 3], False), ([0, 0, 2, 3], False)):
        assert group.contains(start.having({"experts": torch.tensor(order)})) == allowed
    assert SWIGLU.contains(start.having({"experts": torch.tensor([0, 2, 1, 3])})) is True


@pytest.mark.parametrize("nested", [True, False])
@given(groups, seeds())
def test_planted_elements_are_recovered(nested, group, seed):
    weights, planted = block(group, seed), sample(group, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        if not nested:
            patch.setattr(matching, "_NESTED", 0)
        found = match_feedforward(group, weights, group.act(planted, weights))
    assert group.contains(found.element)
    assert_near(found.moved, weights)
    assert torch.equal(found.element.experts, planted.experts.argsort())


@given(st.sampled_from(GROUPS[:3]), seeds())
def test_the_order_of_experts_is_the_best_one(group, seed):
    """Of two unrelated blocks: all orders, each with the best units and shift, one by one."""
    one, other = block(group, seed), block(group, seed + 1)
    found = distance(one, match_feedforward(group, one, other).moved)
    best = float("inf")
    for order in itertools.permutations(range(4)):
        element = group.identity().having({"experts": torch.tensor(order)})
        if not group.contains(element):
            continue
        moved = group.act(element, other)
        if group.shift:
            rows = [matching.router_rows(w).mean(0) for w in (one, moved)]
            shifted = group.identity().having({"shift": rows[0] - rows[1]})
            moved = group.act(shifted, moved)
        units = [match_feedforward(group.expert, one.expert(i), moved.expert(i)).moved for i in range(4)]
        stacked = {name: torch.stack([getattr(unit, name) for unit in units]) for name in units[0].tensors()}
        best = min(best, distance(one, replace(moved, **stacked)))
    assert found == pytest.approx(best, rel=1e-9)


def test_dimensions_and_words():
    assert SWIGLU.dimension == 4 * 3 + WIDTH + 1
    assert str(SWIGLU) == "((R*)^3 ⋊ S_3)^4 ⋊ S_4 × R^6 (router)"
    assert str(GROUPS[1]) == "((R*)^3 ⋊ S_3)^4 ⋊ (S_2 wr S_2)"
    assert str(SWIGLU.expert) == "(R*)^3 ⋊ S_3"
    assert GROUPS[3].dimension == 2 * 2 * 3 + WIDTH + 1
    for wrong in ({"expert_groups": 3}, {"experts": 0}, {"experts": None}):
        with pytest.raises(ValueError, match="experts"):
            replace(SWIGLU, **wrong)
