"""The canonical gauge: all members of an orbit have the same, and it computes what they compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isobasin
from contracts.checks import tensors
from isobasin.architectures.examples import variant
from isobasin.errors import IsobasinError
from isobasin.matching.canonical import Loose, canonical_attention, canonical_feedforward, head_sizes
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights, Weights
from isobasin.testing.assertions import assert_function_preserved
from isobasin.testing.strategies import random_weights

# One of each kind, and whether its feed-forward blocks are known: free biases, grouped queries and planes, partial
# rotation, values that rotate, normalised heads and widths, slopes, several stacks, shared layers, ReLU.
FAMILIES = {
    "bert": "block",
    "opt": "block",
    "llama-biases": "block",
    "gpt_neox": "block",
    "roformer-rotary-value": "block",
    "gemma2": "block",
    "qwen3": "block",
    "olmo2": "block",
    "gpt_oss": "block",
    "qwen2_moe": "block",
    "deepseek_v2-query-latent": "block",
    "deepseek_v3": "block",
    "bloom": "block",
    "bart": "block",
    "albert": "block",
    "isobasin_gpt2": "block",
}


def assert_same(one: Path, other: Path, tolerance: float = 1e-8) -> None:
    """All tensors of two checkpoints are equal, relative to the largest value of each."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert float((x - b[name]).abs().max()) <= tolerance * max(1.0, float(x.abs().max())), name


@pytest.mark.parametrize("name", FAMILIES)
def test_scrambled_models_have_one_canonical_gauge(name, saved, tmp_path):
    model, scope = variant(name), FAMILIES[name]
    original = saved(model)
    isobasin.canonicalize(original, tmp_path / "canonical", scope=scope, verify=False)
    assert_function_preserved(original, tmp_path / "canonical", model.allowed(10))
    isobasin.scramble(original, tmp_path / "scrambled", seed=1, scope=scope, verify=False)
    isobasin.canonicalize(tmp_path / "scrambled", tmp_path / "other", scope=scope, verify=False)
    assert_same(tmp_path / "canonical", tmp_path / "other")
    isobasin.canonicalize(tmp_path / "canonical", tmp_path / "again", scope=scope, verify=False)
    assert_same(tmp_path / "canonical", tmp_path / "again", 1e-11)


_PLANES = ((0, 3), (1, 4))
GROUPS = {
    "tables": AttentionGroup(3, 1, BilinearGroup(4), BilinearGroup(4), table=(0, 0, 1, 0, 1)),
    "sinks, partly rotated": AttentionGroup(2, 2, BilinearGroup(6, _PLANES), BilinearGroup(4), sink=True),
    "normalised heads": AttentionGroup(2, 2, BilinearGroup(6, _PLANES), BilinearGroup(4), norm=QueryKeyNorm.head),
    "normalised width": AttentionGroup(2, 2, BilinearGroup(6, _PLANES), BilinearGroup(4), norm=QueryKeyNorm.full),
    "normalised, not rotated": AttentionGroup(3, 1, BilinearGroup(5), BilinearGroup(4), norm=QueryKeyNorm.head),
    "heads with LayerNorm": AttentionGroup(
        2, 2, BilinearGroup(7, _PLANES), BilinearGroup(4), norm=QueryKeyNorm.centred, means=13
    ),
    "slopes": AttentionGroup(
        4, 1, BilinearGroup(4), BilinearGroup(4), key_shift=True, value_shift=True, permuted=False
    ),
    "latents": AttentionGroup(
        3, 1, BilinearGroup(4), BilinearGroup(3), latent=LatentGroup(7, 6, BilinearGroup(4, ((0, 2), (1, 3))))
    ),
    "wider than the model": AttentionGroup(2, 1, BilinearGroup(14), BilinearGroup(14)),
}
_BIASES = dict.fromkeys(("query", "key", "value", "output"), True)


def canonical(group: AttentionGroup, weights: AttentionWeights) -> tuple[AttentionElement, AttentionWeights, list[str]]:
    """The element, the moved weights, and what is not unique in them."""
    loose = Loose(torch.finfo(torch.float64).eps)
    element = canonical_attention(group, weights, head_sizes(group, weights), loose)
    assert group.contains(element)
    return element, group.act(element, weights), loose.names


def apart(one: Weights, other: Weights) -> set[str]:
    """The roles of weights that differ by more than rounding can make of them."""
    pairs = ((role, x, getattr(other, role)) for role, x in one.tensors().items())
    return {role for role, x, y in pairs if float((x - y).norm()) > 0.1 * float(x.norm())}


@pytest.mark.parametrize("name", ["normalised, not rotated", "slopes", "latents", "wider than the model"])
def test_whatever_heads_of_copies_in_16_bits_disagree_on_is_named(name):
    group, seen = GROUPS[name], False
    for seed in range(20):
        weights = random_weights(group, 12, _BIASES, seed)
        random = group.sample(torch.Generator().manual_seed(seed + 10), condition=3.0)
        moved, loose = list[AttentionWeights](), Loose(torch.finfo(torch.bfloat16).eps)
        for copy in (weights, group.act(random, weights)):
            stored = copy.map(lambda x: x.bfloat16().double())
            element = canonical_attention(group, stored, head_sizes(group, stored), loose)
            moved.append(group.act(element, stored))
        differing = apart(*moved)
        assert differing <= set[str]().union(*loose.choices.values())
        seen |= bool(differing)
    assert seen


def test_whatever_units_of_copies_in_16_bits_disagree_on_is_named():
    group = FeedForwardGroup(20, up=Scale.signed, gate=Scale.none, experts=3)
    generator, moved = torch.Generator().manual_seed(0), list[FeedForwardWeights]()
    parts = dict.fromkeys(("up", "gate", "down"), (3, 20, 8)) | {"router": (3, 8), "up_bias": (3, 20)}
    weights = FeedForwardWeights(
        **{role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in parts.items()}
    )
    loose = Loose(torch.finfo(torch.bfloat16).eps)
    for copy in (weights, group.act(group.sample(generator), weights)):
        stored = copy.map(lambda x: x.bfloat16().double())
        moved.append(group.act(canonical_feedforward(group, stored, loose), stored))
    assert apart(*moved) == {"up", "gate", "down", "up_bias"} == loose.choices["unit order"]
    assert loose.choices.get("expert order", parts.keys()) == parts.keys()


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_one_orbit_have_one_canonical_member(name, seed):
    group = GROUPS[name]
    weights = random_weights(group, 12, _BIASES, seed)
    random = group.sample(torch.Generator().manual_seed(seed + 10), condition=100.0)
    found = [canonical(group, w) for w in (weights, group.act(random, weights))]
    deficient = ["rank"] if name == "wider than the model" else []
    assert [names[:1] for _, _, names in found] == [deficient, deficient]
    unique = {"query_gain", "key_gain", "table", "sink"} if deficient else found[0][1].tensors().keys()
    for part in unique & found[0][1].tensors().keys():
        x, y = (getattr(moved, part) for _, moved, _ in found)
        torch.testing.assert_close(x, y, rtol=0, atol=1e-8)
    hidden = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angles = torch.arange(5.0, dtype=torch.float64).unsqueeze(-1) * torch.tensor([1.0, 0.1])
    before, after = (attend(w, group, hidden, angles) for w in (weights, found[1][1]))
    torch.testing.assert_close(before, after, rtol=1e-8, atol=1e-8 * float(before.abs().max()))


def test_the_gauge_is_balanced_and_leaves_no_free_bias():
    group = AttentionGroup(2, 2, BilinearGroup(6, _PLANES), BilinearGroup(4), key_shift=True, value_shift=True)
    _, moved, _ = canonical(group, random_weights(group, 12, _BIASES, 0))
    for left, right in zip(moved.value, moved.output, strict=True):
        tall = right.flatten(0, 1)
        torch.testing.assert_close(left.mT @ left, tall.mT @ tall)
        assert float((left.mT @ left).tril(-1).abs().max()) < 1e-12
    assert not moved.value_bias.any()
    assert not moved.key_bias[:, list(group.query_key.linear)].any()
    assert moved.key_bias[:, 0].all()


@pytest.mark.parametrize("case", ["no values", "half the rank", "two heads alike", "orthogonal"])
def test_degenerate_heads_are_moved_and_named(case):
    """The function stays even where the conditions of uniqueness fail, and no map is badly conditioned."""
    group = AttentionGroup(2, 1, BilinearGroup(4), BilinearGroup(4))
    weights = random_weights(group, 12, {}, 0)
    value, output = weights.value.clone(), weights.output.clone()
    if case == "no values":
        value[0] = 0
    elif case == "half the rank":
        value[0, :, 2:] = value[0, :, :2]
    elif case == "two heads alike":
        weights = replace(weights, query=weights.query[[0, 0]], key=weights.key[[0, 0]])
        value[1], output[1] = value[0], output[0]
    else:
        value[0], output[0, 0] = torch.linalg.qr(value[0]).Q, torch.linalg.qr(output[0, 0]).Q
    weights = replace(weights, value=value, output=output)
    element, moved, names = canonical(group, weights)
    assert names[:1] == [{"two heads alike": "head order", "orthogonal": "singular values"}.get(case, "rank")]
    assert float(torch.linalg.cond(element.parts["value_output.matrix"]).max()) < 1e3
    hidden = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(attend(weights, group, hidden), attend(moved, group, hidden))


FEEDFORWARD = {
    "plain": FeedForwardGroup(7),
    "relu": FeedForwardGroup(7, Scale.positive),
    "relu2": FeedForwardGroup(7, Scale.positive, degree=2),
    "tanh": FeedForwardGroup(7, Scale.sign),
    "swiglu": FeedForwardGroup(7, Scale.signed, Scale.none),
    "reglu": FeedForwardGroup(7, Scale.signed, Scale.positive, degree=2),
    "gated tanh": FeedForwardGroup(7, Scale.signed, Scale.sign),
}


@pytest.mark.parametrize("name", FEEDFORWARD)
@pytest.mark.parametrize("dead", [False, True])
def test_units_of_one_orbit_have_one_canonical_member(name, dead):
    group = FEEDFORWARD[name]
    generator = torch.Generator().manual_seed(1)
    names = ("up", "down", "gate", "up_bias") if group.gate else ("up", "down", "up_bias")
    shapes = {part: (7,) if part == "up_bias" else (7, 5) for part in names}
    parts = {part: torch.randn(s, generator=generator, dtype=torch.float64) for part, s in shapes.items()}
    if dead:
        parts["down"][2] = 0
    weights = FeedForwardWeights(**parts)
    moved: list[FeedForwardWeights] = []
    for element in (group.identity(), group.sample(generator, condition=100.0)):
        start, loose = group.act(element, weights), Loose(1e-15)
        found = canonical_feedforward(group, start, loose)
        assert group.contains(found)
        assert loose.names == (["scales"] if dead and name not in ("plain", "tanh") else [])
        moved.append(group.act(found, start))
    for part, x in moved[0].tensors().items():
        torch.testing.assert_close(x[:-1], getattr(moved[1], part)[:-1])


def test_files_of_scrambled_float32_models_agree_to_rounding(saved, tmp_path):
    original = saved(variant("llama"), dtype=torch.float32)
    isobasin.scramble(original, tmp_path / "scrambled", scope="block", verify=False)
    for name, source in (("one", original), ("other", tmp_path / "scrambled")):
        assert isobasin.canonicalize(source, tmp_path / name, scope="block").verified.equal
    assert_same(tmp_path / "one", tmp_path / "other", 1e-3)


def test_a_block_says_whether_its_gauge_is_unique(saved):
    found = isobasin.canonical_alignment(saved(variant("llama")), scope="block")
    assert {layer.statistics.status for layer in (*found.layers, *found.feedforward)} == {"canonical"}
    rough = isobasin.canonical_alignment(saved(variant("llama"), dtype=torch.bfloat16), scope="block")
    assert any(layer.statistics.status.startswith("not unique: ") for layer in rough.feedforward)


def test_the_residual_stream_has_no_canonical_basis(saved, tmp_path):
    with pytest.raises(IsobasinError, match="--scope attention or block"):
        isobasin.canonicalize(saved(variant("llama")), tmp_path / "out", scope="model")
