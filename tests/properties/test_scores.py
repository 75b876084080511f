"""What else scores may depend on (norms, slopes, tables, sinks) leaves exactly the group that is stated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_dimension import ALL, HALF, NONE, PAIRS, SOME, unseen

from isobasin.matching import circuits
from isobasin.symmetries.groups import QueryKeyNorm
from isobasin.symmetries.normed import PLANES, turned
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.strategies import element, make_block, make_group, random_weights

HEAD, FULL, CENTRED = QueryKeyNorm.head, QueryKeyNorm.full, QueryKeyNorm.centred
# name: biases, key/value heads, queries of each, features, planes, what else, and the dimension by hand
SETTINGS: dict[str, tuple[dict[str, bool], int, int, int, Any, dict[str, Any], int]] = {
    "norm": (NONE, 2, 1, 3, (), {"norm": HEAD}, 2 * 9 + 3),
    "norm-biases": (ALL, 2, 1, 3, (), {"norm": HEAD}, 2 * (9 + 3) + 3),
    "norm-rope": (NONE, 2, 1, 4, HALF, {"norm": HEAD}, 2 * 16 + 2),
    "norm-rope-grouped": (NONE, 2, 2, 4, PAIRS, {"norm": HEAD}, 2 * 16 + 2),
    "norm-partial-rope": (NONE, 2, 1, 4, SOME, {"norm": HEAD}, 2 * 16 + 3),
    "full-norm": (NONE, 2, 1, 3, (), {"norm": FULL}, 2 * (9 + 3)),
    "full-norm-rope-grouped": (NONE, 2, 2, 4, HALF, {"norm": FULL}, 2 * (16 + 2)),
    "layer-norm-rope": (NONE, 2, 1, 4, HALF, {"norm": CENTRED, "means": 8}, 2 * (16 + 2) + 4 * 8),
    "layer-norm-rope-biases": (ALL, 2, 1, 4, PAIRS, {"norm": CENTRED, "means": 9}, 2 * (16 + 4 + 2) + 4 * 9),
    "layer-norm-partial-rope-grouped": (NONE, 2, 2, 4, SOME, {"norm": CENTRED, "means": 8}, 2 * (16 + 3) + 6 * 8),
    "layer-norm-least": (NONE, 2, 1, 3, SOME, {"norm": CENTRED, "means": 6}, 2 * (9 + 2) + 4 * 6),
    "sink": (ALL, 2, 1, 3, (), {"sink": True}, 2 * (9 + 9)),
    "sink-rope-grouped": (ALL, 2, 2, 4, HALF, {"sink": True}, 2 * (4 + 16)),
    "slopes": (ALL, 2, 1, 3, (), {"permuted": False}, 2 * (9 + 9 + 3 + 3)),
    "table": (NONE, 2, 1, 3, (), {"table": (0, 0, 0)}, 2 * (9 + 9 + 1)),
    "table-two-constants": (NONE, 2, 2, 2, (), {"table": (0, 0, 1, 1)}, 2 * (4 + 4) + 4 * 2),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_directions_that_the_function_does_not_see(name):
    biases, groups, queries, features, planes, facts, expected = SETTINGS[name]
    group = make_group(groups, queries, features, biases, planes, **facts)
    weights = random_weights(group, groups * features, biases, seed=len(name))
    found = unseen(group, weights)
    assert found.nullity == expected == group.dimension
    assert found.gap > 1e6


@pytest.mark.parametrize(("features", "planes"), [(3, ()), (2, SOME)])
def test_layer_norm_of_heads_that_are_refused_hides_more(features, planes):
    """A curve of gains where nothing rotates, and the phase of the only plane."""
    facts = {"norm": CENTRED, "means": 2 * features}
    group = replace(make_group(2, 1, features, NONE, planes), **facts)
    found = unseen(group, random_weights(group, 2 * features, NONE, seed=1))
    assert found.nullity > group.dimension
    assert found.gap > 1e6


def test_queries_without_their_mean_are_not_degenerate():
    """Their columns sum to zero, so their rank is one less than their number; less than that is told."""
    group = make_group(2, 1, 5, NONE, HALF, norm=CENTRED, means=12)
    weights = AttentionWeights(**group.read(make_block(group, 12, NONE, seed=3).weights.tensors()))
    assert circuits.degeneracy(group, weights).rank_deficient == ()
    query = weights.query.clone()
    query[1, 0, :, 3:] = -query[1, 0, :, :3].sum(-1, keepdim=True) / 2
    assert circuits.degeneracy(group, replace(weights, query=query)).rank_deficient == (("query", 1),)


def test_layer_norm_lets_no_sign_of_a_plane_pass():
    """Two turns of one plane are a trade of -1, and the sign of a head is that of all features."""
    group = make_group(2, 1, 5, NONE, HALF, norm=CENTRED)
    block = make_block(group, 12, NONE, seed=3)
    start = group.identity()
    planes = start.parts[PLANES].clone()
    planes[1, 0] = 1j
    turn = start.having({PLANES: planes})
    twice = group.compose(turn, turn)
    assert group.contains(twice)
    assert torch.equal(twice.parts[PLANES], start.parts[PLANES])
    assert twice.parts["trades"].tolist() == [[1, 1, 1], [-1, 1, 1]]
    flipped = start.having({PLANES: twice.parts[PLANES] * torch.tensor([1, -1])})
    assert not group.contains(flipped)
    for move in (turn, twice):
        moved = group.act(move, block.weights)
        assert float((block.output() - block.output(moved)).abs().max()) < 1e-12


@pytest.mark.parametrize("norm", [HEAD, FULL])
def test_what_heads_with_common_gains_share_is_shared(norm):
    """A turn of one head alone is an element only where that head has gains of its own."""
    group = make_group(3, 1, 4, NONE, HALF, norm=norm)
    block = make_block(group, 12, NONE, seed=3)
    whole = element(group, 5)
    assert group.contains(whole)
    planes = whole.parts[PLANES].clone()
    planes[1, 0] *= 1j
    alone = whole.having({PLANES: planes})
    assert group.contains(alone) == (norm is FULL)
    moved = group.act(alone, block.weights)
    assert (float((block.output() - block.output(moved)).abs().max()) < 1e-12) == (norm is FULL)


def test_elements_outside_the_group_are_known():
    normed = make_group(2, 1, 4, NONE, HALF, norm=HEAD)
    start = normed.identity()
    assert normed.contains(start)
    for name, factor in ((PLANES, 2), ("trades", 0), ("key_signs", 2)):
        assert not normed.contains(start.having({name: factor * start.parts[name]}))
    fixed = make_group(2, 1, 4, NONE, permuted=False)
    start = fixed.identity()
    assert fixed.contains(start)
    assert not fixed.contains(start.having({"outer": start.outer.flip(-1)}))


def test_gains_follow_a_quarter_turn():
    """By hand: the plane (a, b) becomes (-b, a), so its two gains change places."""
    group = make_group(1, 1, 2, NONE, ((0, 1),), norm=HEAD)
    weights = random_weights(group, 3, NONE, seed=1)
    start = group.identity()
    turn = start.having({PLANES: 1j * start.parts[PLANES], "trades": 2 * start.parts["trades"]})
    moved = group.act(turn, weights)
    assert torch.equal(moved.query[..., 0], -weights.query[..., 1])
    assert torch.equal(moved.query[..., 1], weights.query[..., 0])
    assert weights.query_gain is not None
    assert moved.query_gain is not None
    assert torch.equal(moved.query_gain, 2 * weights.query_gain.flip(-1))
    assert bool(turned(turn.parts[PLANES]).all())
