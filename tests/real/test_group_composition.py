"""Independently trained one-layer transformers with TransformerLens names: attention aligned pairwise."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import isobasin
from isobasin.choices import Method
from isobasin.matching.attention import distance, match
from isobasin.symmetries import attention
from isobasin.symmetries.along import Along, Role, Stream
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.stream import Basis, StreamGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference

pytestmark = pytest.mark.long
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
    outputs = [attend(w, GROUP, inputs, causal=True) for w in (model, found.moved)]
    assert relative_difference(*outputs) < 1e-9
    permuted = attention.permute(model, found.element.outer, found.element.inner)
    assert after < float(distance(reference, permuted))
    published = match(GROUP, reference, model, method=Method.paper, max_condition=1e6)
    assert after <= float(distance(reference, published.moved)) * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_a_scrambled_seed_comes_back(seed, condition, states):
    original = block(states[seed])
    element = GROUP.sample(torch.Generator().manual_seed(seed), condition=condition)
    moved = GROUP.act(element, original)
    found = isobasin.match(GROUP, original, moved)
    assert torch.equal(element.head_permutation()[found.element.head_permutation()], torch.arange(4))
    size = float(distance(original, original.map(torch.zeros_like)))
    assert float(distance(original, found.moved)) < 1e-8 * size


def described() -> isobasin.Specification:
    """The whole model: attention, feed-forward block, and a residual stream without any normalisation."""
    sizes = (("head", 4), ("width", 128), ("feature", 32))

    def attention_projection(letter: str) -> isobasin.Projection:
        pattern = "head feature width" if letter == "O" else "head width feature"
        layout = isobasin.Layout(pattern, sizes)
        return isobasin.Projection(f"blocks.0.attn.W_{letter}", f"blocks.0.attn.b_{letter}", layout)

    def units(name: str, pattern: str) -> isobasin.Projection:
        layout = isobasin.Layout(pattern, (("width", 128), ("feature", 512)))
        return isobasin.Projection(f"blocks.0.mlp.W_{name}", f"blocks.0.mlp.b_{name}", layout)

    query, key, value, output = (attention_projection(letter) for letter in "QKVO")
    block = isobasin.AttentionBlock(0, "attn", query, key, value, output, GROUP)
    up, down = units("in", "width feature"), units("out", "feature width")
    mlp = isobasin.FeedForwardBlock(0, "mlp", up, None, down, FeedForwardGroup(512, Scale.positive), "relu")
    along = (
        *(Along(name, 1) for name in ("embed.W_E", "pos_embed.W_pos", "blocks.0.mlp.W_out")),
        Along("blocks.0.attn.W_O", 2),
        *(Along(name, 0) for name in ("blocks.0.attn.b_O", "blocks.0.mlp.b_out")),
        *(Along(f"blocks.0.attn.W_{letter}", 1, Role.covector) for letter in "QKV"),
        *(Along(name, 0, Role.covector) for name in ("blocks.0.mlp.W_in", "unembed.W_U")),
    )
    return isobasin.Specification("toy", (block,), (mlp,), Stream(StreamGroup(128, Basis.linear), along))


def logits(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The whole model, written plainly."""
    w = {name: t.double() for name, t in state.items()}
    h = w["embed.W_E"][tokens] + w["pos_embed.W_pos"]
    h = h + attend(block(w), GROUP, h, causal=True)
    h = h + (h @ w["blocks.0.mlp.W_in"] + w["blocks.0.mlp.b_in"]).relu() @ w["blocks.0.mlp.W_out"]
    return (h + w["blocks.0.mlp.b_out"])[:, -1] @ w["unembed.W_U"] + w["unembed.b_U"]


def tokens() -> torch.Tensor:
    x, y = torch.arange(113), torch.arange(113).roll(5)
    return torch.stack([x, y, torch.full_like(x, 113)], 1)


def test_whole_models_come_nearer_than_their_attention_does(states):
    reference, model = ({n: t.double() for n, t in states[i].items()} for i in (1, 2))
    found = isobasin.align_tensors(reference, model, described(), scope="model", method="balanced")
    blocks = isobasin.align_tensors(reference, model, described(), scope="block")
    assert found.verified.equal
    moved = [a.moved_tensors(model, described()) for a in (found, blocks)]
    assert relative_difference(logits(model, tokens()), logits(moved[0], tokens())) < 1e-8
    whole, block_only = (sum(float((reference[n] - t[n]).square().sum()) for n in reference) for t in moved)
    assert whole < 0.9 * block_only
