"""The stated dimension, measured twice: as the rank of the action, and as what the function doesn't see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.func import jacfwd

from isobasin.certification.nullity import Spectrum, spectrum
from isobasin.certification.tangents import tangents
from isobasin.matching.attention import match
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import (
    Block,
    biases,
    element,
    make_block,
    make_group,
    plane_layouts,
    random_weights,
    seeds,
)

ALL = {"query": True, "key": True, "value": True, "output": True}
NONE: dict[str, bool] = {}
HALF, PAIRS, SOME = ((0, 2), (1, 3)), ((0, 1), (2, 3)), ((0, 1),)
# name: biases, key/value heads, queries of each, features, planes, rotary values, and the dimension by hand:
# heads × (query/key + value/output + free shifts)
SETTINGS = {
    "vanilla": (NONE, 2, 1, 3, (), False, 2 * (9 + 9)),
    "all-biases": (ALL, 2, 1, 3, (), False, 2 * (9 + 9 + 3 + 3)),
    "value-bias-alone": ({"value": True}, 2, 1, 3, (), False, 2 * (9 + 9)),
    "output-bias-alone": ({"output": True}, 2, 1, 3, (), False, 2 * (9 + 9)),
    "value-and-output-bias": ({"value": True, "output": True}, 2, 1, 3, (), False, 2 * (9 + 9 + 3)),
    "key-bias-alone": ({"key": True}, 2, 1, 3, (), False, 2 * (9 + 9 + 3)),
    "query-bias-alone": ({"query": True}, 2, 1, 3, (), False, 2 * (9 + 9)),
    "grouped": (NONE, 2, 2, 2, (), False, 2 * (4 + 4)),
    "grouped-biases": (ALL, 2, 2, 2, (), False, 2 * (4 + 4 + 2 + 2)),
    "rope-half": (NONE, 2, 1, 4, HALF, False, 2 * (4 + 16)),
    "rope-interleaved-biases": (ALL, 2, 1, 4, PAIRS, False, 2 * (4 + 16 + 4)),
    "rope-grouped": (NONE, 2, 2, 4, HALF, False, 2 * (4 + 16)),
    "rope-grouped-qkv-bias": ({"query": True, "key": True, "value": True}, 2, 2, 4, HALF, False, 2 * (4 + 16)),
    "partial-rope": (NONE, 2, 1, 4, SOME, False, 2 * (2 + 4 + 16)),
    "partial-rope-biases": (ALL, 2, 1, 4, SOME, False, 2 * (2 + 4 + 16 + 2 + 4)),
    "rotary-value": (ALL, 2, 1, 4, PAIRS, True, 2 * (4 + 4)),
}


def flattened(weights: AttentionWeights) -> tuple[Tensor, Callable[[Tensor], AttentionWeights]]:
    parts = weights.tensors()
    sizes = [t.numel() for t in parts.values()]

    def build(flat: Tensor) -> AttentionWeights:
        pieces = zip(parts.items(), flat.split(sizes), strict=True)
        return AttentionWeights(**{name: piece.reshape(t.shape) for (name, t), piece in pieces})

    return torch.cat([t.flatten() for t in parts.values()]), build


def case(name: str) -> tuple[AttentionGroup, AttentionWeights, int]:
    biases, groups, queries, features, planes, rotary_value, expected = SETTINGS[name]
    group = make_group(groups, queries, features, biases, planes, rotary_value=rotary_value)
    # With fewer, value biases that no output bias absorbs could trade with each other: see the last test.
    width = groups * features
    return group, random_weights(group, width, biases, seed=len(name)), expected


@pytest.mark.parametrize("name", SETTINGS)
def test_rank_of_the_action_at_the_identity(name):
    group, weights, expected = case(name)
    action = torch.cat([part.flatten(0, -2) for part in tangents(group, weights.tensors()).values()])
    found = spectrum(action)
    assert action.shape[1] == group.dimension == found.rank == expected
    assert found.gap > 1e6


def unseen(group: AttentionGroup, weights: AttentionWeights, seed: int = 0) -> Spectrum:
    """What the outputs see of all weights, on several random inputs."""
    flat, build = flattened(weights)
    generator = torch.Generator().manual_seed(seed)
    width, tokens = weights.key.shape[-2], 5
    rows = 2 * flat.numel() // (tokens * width) + 2
    hidden = torch.randn(rows, tokens, width, generator=generator, dtype=torch.float64)
    turning = max((group.query_key, group.value_output), key=lambda pair: len(pair.planes)).frequencies
    angles = torch.arange(tokens, dtype=torch.float64).unsqueeze(-1) * 0.37 ** torch.tensor(turning).double()
    jacobian = jacfwd(lambda w: attend(build(w), group, hidden, angles).flatten())(flat)
    assert jacobian.shape[0] >= 2 * jacobian.shape[1]
    return spectrum(jacobian)


@pytest.mark.parametrize("name", SETTINGS)
def test_directions_that_the_function_does_not_see(name):
    group, weights, expected = case(name)
    found = unseen(group, weights)
    assert found.nullity == expected == group.dimension
    assert found.gap > 1e6


def test_value_biases_of_heads_wider_than_the_model_trade_with_each_other():
    """The one known freedom outside the group: without an output bias, `Σ v_j O_j^T = 0` has `g m - d` solutions.

    It needs more value features than the model is wide, and no family has that.
    """
    group = make_group(2, 1, 3, {"value": True})
    found = unseen(group, random_weights(group, 4, {"value": True}, seed=0))
    assert found.nullity == group.dimension + (2 * 3 - 4)
    assert found.gap > 1e6


@st.composite
def attention_blocks(draw: st.DrawFn) -> Block:
    """Generic blocks of any kind, no wider in their heads than the stream: see the test before."""
    groups, queries, features = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(2, 4))
    has, planes = draw(biases()), draw(plane_layouts(features))
    rotary_value = draw(st.booleans()) and bool(planes)
    group = make_group(groups, queries, features, has, planes, rotary_value=rotary_value)
    return make_block(group, groups * features + draw(st.integers(1, 2)), has, draw(seeds()))


@settings(max_examples=25)
@given(block=attention_blocks(), seed=seeds())
def test_any_setting_has_the_stated_group_and_no_more(block: Block, seed: int):
    """A random element changes nothing, is found again, and there are no other directions."""
    moved = block.group.act(element(block.group, seed), block.weights)
    assert relative_difference(block.output(), block.output(moved)) < 1e-9
    back = block.group.act(match(block.group, block.weights, moved).element, moved)
    for name, part in block.weights.tensors().items():
        assert relative_difference(part, back.tensors()[name]) < 1e-6, name
    found = unseen(block.group, block.weights, seed)
    assert found.nullity == block.group.dimension
    assert found.gap > 1e6
