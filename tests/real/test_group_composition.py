"""Independently trained one-layer transformers with TransformerLens names: attention aligned pairwise."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.matching.attention import Method, distance, match
from isobasin.symmetries import attention
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference

GROUP = AttentionGroup(4, 1, BilinearGroup(32), BilinearGroup(32), key_shift=True, value_shift=True)
PAIRS = list(itertools.combinations(range(1, 5), 2))


@pytest.fixture(scope="module")
def states(real_checkpoints: Path) -> dict[int, dict[str, torch.Tensor]]:
    folder = real_checkpoints / "group_composition_C113"
    return {i: torch.load(folder / f"seed{i}.pt", map_location="cpu", weights_only=True) for i in range(1, 5)}


def block(state: dict[str, torch.Tensor]) -> AttentionWeights:
    """TransformerLens keeps heads first and `W_O` as (head, feature, width)."""
    part = {name.rsplit(".", 1)[1]: t.double() for name, t in state.items() if ".attn." in name}
    return AttentionWeights(
        query=part["W_Q"].unsqueeze(1),
        key=part["W_K"],
        value=part["W_V"],
        output=part["W_O"].mT.unsqueeze(1).contiguous(),
        query_bias=part["b_Q"].unsqueeze(1),
        key_bias=part["b_K"],
        value_bias=part["b_V"],
        output_bias=part["b_O"],
    )


def hidden(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The block's real inputs: embeddings of x, y and "=" with their positions."""
    x, y = torch.arange(113), torch.arange(113).roll(5)
    sequence = torch.stack([x, y, torch.full_like(x, 113)], 1)
    return (state["embed.W_E"][sequence] + state["pos_embed.W_pos"]).double()


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_seeds_come_nearer_and_compute_the_same(pair, states):
    reference, model = (block(states[i]) for i in pair)
    found = match(GROUP, reference, model, max_condition=1e6)
    before, after = float(distance(reference, model)), float(distance(reference, found.moved))
    assert after < 0.95 * before
    inputs = hidden(states[pair[1]])
    outputs = [attention.attend(w, GROUP, inputs, causal=True) for w in (model, found.moved)]
    assert relative_difference(*outputs) < 1e-9
    permuted = attention.permute(model, found.element.outer, found.element.inner)
    assert after < float(distance(reference, permuted))
    published = match(GROUP, reference, model, method=Method.paper, max_condition=1e6)
    assert after <= float(distance(reference, published.moved)) * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_a_scrambled_seed_comes_back(seed, condition, states):
    original = block(states[seed])
    element = attention.sample(GROUP, torch.Generator().manual_seed(seed), condition=condition)
    moved = attention.act(GROUP, element, original)
    found = isobasin.match(GROUP, original, moved)
    assert torch.equal(element.head_permutation()[found.element.head_permutation()], torch.arange(4))
    size = float(distance(original, original.map(torch.zeros_like)))
    assert float(distance(original, found.moved)) < 1e-8 * size
