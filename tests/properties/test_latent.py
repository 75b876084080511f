"""Latent attention: the laws of its group, its dimension, and that a planted element is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import jacfwd

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.certification.nullity import spectrum
from isobasin.certification.tangents import tangents
from isobasin.choices import HeadCost, Method
from isobasin.errors import ArchitectureError, TensorError
from isobasin.matching import latents
from isobasin.matching.attention import align_heads, distance, match
from isobasin.matching.averaging import circuit_mean
from isobasin.matching.circuits import bias_error, circuit_error
from isobasin.matching.heads import assign, head_costs
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import Block, conditions, element, make_block, random_weights, seeds


def make(query: int, key_value: int = 5, heads: int = 3, plain: int = 2, value: int = 3) -> AttentionGroup:
    shared = LatentGroup(query, key_value, BilinearGroup(4, ((0, 2), (1, 3))))
    return AttentionGroup(heads, 1, BilinearGroup(plain), BilinearGroup(value), latent=shared)


@st.composite
def latent_blocks(draw: st.DrawFn) -> Block:
    """Heads no wider than the latents, and these no wider than the stream."""
    plain, value = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    query, key_value = draw(st.sampled_from([0, 3, 4])), draw(st.integers(3, 5))
    group = make(query, key_value, draw(st.integers(1, 3)), plain, value)
    return make_block(group, draw(st.integers(6, 8)), {"output": draw(st.booleans())}, draw(seeds()))


def assert_close(a: AttentionWeights, b: AttentionWeights, tolerance: float) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        assert relative_difference(tensor, b.tensors()[name]) <= tolerance, name


@given(latent_blocks(), seeds(), conditions(), st.booleans())
def test_the_function_is_preserved(block: Block, seed: int, condition: float, causal: bool):
    moved = block.group.act(element(block.group, seed, condition), block.weights)
    before, after = block.output(causal=causal), block.output(moved, causal=causal)
    assert relative_difference(before, after) <= 1e-12 * max(condition, 10)
    still = block.group.act(block.group.identity(), block.weights)
    assert all(torch.equal(t, getattr(still, name)) for name, t in block.weights.tensors().items())


@given(latent_blocks(), seeds(), seeds())
def test_composition_and_inverse(block: Block, x: int, y: int):
    group, first, second = block.group, element(block.group, x), element(block.group, y)
    assert all(group.contains(g) for g in (first, group.inverse(first)))
    moved = group.act(first, block.weights)
    at_once = group.act(group.compose(second, first), block.weights)
    assert_close(group.act(second, moved), at_once, 1e-10)
    assert_close(block.weights, group.act(group.inverse(first), moved), 1e-10)


@given(latent_blocks(), seeds())
def test_batches_act_one_by_one(block: Block, seed: int):
    group, generator = block.group, torch.Generator().manual_seed(seed)
    many = group.sample(generator, (2,))
    has = {"output": block.weights.output_bias is not None}
    weights = random_weights(group, block.hidden.shape[-1], has, seed, (2,))
    moved = group.act(many, weights)
    for i in range(2):
        assert_close(group.act(many[i], weights[i]), moved[i], 1e-12)


@given(latent_blocks())
def test_gains_are_folded_and_taken_out_again(block: Block):
    stored = block.group.stored(block.weights.tensors())
    assert_close(block.weights, AttentionWeights(**block.group.read(stored)), 1e-12)
    assert not torch.equal(stored["key"], block.weights.key)


@pytest.mark.parametrize("query", [0, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_dimension(query: int, biased: bool):
    """By hand, as the rank of the action, and as what the function doesn't see."""
    group = make(query)
    shared = 4 + 5 * 6 // 2 + query * (query + 1) // 2
    assert group.dimension == 3 * (4 + 9) + shared
    weights = random_weights(group, 7, {"output": biased}, seed=3)
    action = torch.cat([part.flatten(0, -2) for part in tangents(group, weights.tensors()).values()])
    assert action.shape[1] == group.dimension == spectrum(action).rank

    parts = weights.tensors()
    sizes = [t.numel() for t in parts.values()]
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(2 * sum(sizes) // 35 + 2, 5, 7, generator=generator, dtype=torch.float64)
    angles = torch.arange(5.0, dtype=torch.float64).unsqueeze(-1) * torch.tensor([1.0, 0.37], dtype=torch.float64)

    def outputs(flat: torch.Tensor) -> torch.Tensor:
        pieces = zip(parts.items(), flat.split(sizes), strict=True)
        own = AttentionWeights(**{name: piece.reshape(t.shape) for (name, t), piece in pieces})
        return attend(own, group, hidden, angles).flatten()

    found = spectrum(jacfwd(outputs)(torch.cat([t.flatten() for t in parts.values()])))
    assert found.nullity == group.dimension
    assert found.gap > 1e6


@settings(max_examples=25)
@given(latent_blocks(), seeds(), conditions(100))
def test_a_planted_element_is_found(block: Block, seed: int, condition: float):
    group = block.group
    planted = element(group, seed, condition)
    moved = group.act(planted, block.weights)
    found = match(group, block.weights, moved)
    assert group.contains(found.element)
    assert_close(block.weights, found.moved, 1e-7)
    assert_close(found.moved, group.act(found.element, moved), 1e-9)
    assert float(circuit_error(group, block.weights, found.moved)) < 1e-7
    assert float(bias_error(group, block.weights, found.moved)) < 1e-7


@pytest.mark.parametrize("cost", list(HeadCost))
@pytest.mark.parametrize("query", [0, 6])
def test_heads_are_told_apart_by_every_cost(cost: HeadCost, query: int):
    group = make(query, heads=5)
    weights = random_weights(group, 8, {"output": True}, seed=1)
    planted = element(group, 2)
    outer, inner = assign(head_costs(group, weights, group.act(planted, weights), cost))
    assert torch.equal(planted.outer[outer], torch.arange(5))
    assert not inner.any()


@pytest.mark.parametrize("method", [Method.gauss_newton, Method.balanced, Method.orthogonal, Method.paper])
def test_sweeps_only_come_nearer(method: Method):
    """Between unrelated blocks the readers have a part in a latent's rotation, and all end nearer than they began."""
    group = make(6)
    a, b = (random_weights(group, 8, {"output": True}, seed, (2,)) for seed in (1, 2))
    start = group.identity((2,))
    first = group.act(start.having(latents.fit(group, a, b)), b)
    found = align_heads(group, a, b, start.outer, start.inner, method=method)
    assert bool((distance(a, found.moved) < 0.99 * distance(a, first)).all())
    assert_close(found.moved, group.act(found.element, b), 1e-9)


def test_heads_alone_leave_latents_as_they_are():
    group = make(6)
    a, b = (random_weights(group, 8, {}, seed) for seed in (1, 2))
    found = match(group, a, b, method=Method.heads)
    fixed = group.identity().tensors()
    kept = {name: part for name, part in found.element.tensors().items() if name not in ("outer", "inner")}
    assert all(torch.equal(part, fixed[name]) for name, part in kept.items())


def test_what_a_norm_sees_is_no_element():
    """The counterpart: a scale or a shear of a latent, and another rotary map of one head, change the function."""
    block = make_block(make(6), 7, {}, 3)
    start = block.group.identity()
    parts = start.tensors()
    for name in ("latent.query", "latent.key_value"):
        wrong = start.having({name: 1.5 * parts[name]})
        assert not block.group.contains(wrong)
        assert relative_difference(block.output(), block.output(block.group.act(wrong, block.weights))) > 1e-3
    turned = block.weights.rotary_query
    assert turned is not None
    one_head = torch.cat([2 * turned[:1], turned[1:]])
    assert relative_difference(block.output(), block.output(replace(block.weights, rotary_query=one_head))) > 1e-3


def test_other_latents_are_another_function():
    """Equal circuits of heads aren't enough: what writes a latent counts."""
    group = make(6)
    weights = random_weights(group, 8, {}, 1)
    assert weights.key_value_down is not None
    other = replace(weights, key_value_down=1.001 * weights.key_value_down)
    assert float(circuit_error(group, weights, other)) > 5e-4


@pytest.mark.parametrize("query", [0, 6])
def test_weighing_by_inputs_finds_a_planted_element_too(query: int):
    """What reads the stream is weighed; what reads a latent has no inputs of its own to weigh by."""
    group = make(query)
    weights = random_weights(group, 8, {"output": True}, 1)
    inputs = torch.randn(40, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    inputs[:, -1] = 1
    readers = ("query_down", "key_value_down", "rotary_key") if query else ("query", "rotary_query", "key_value_down")
    moved = group.act(element(group, 2), weights)
    found = match(group, weights, moved, moments=dict.fromkeys(readers, inputs.mT @ inputs / len(inputs)))
    assert_close(weights, found.moved, 1e-8)


def test_circuits_are_not_averaged():
    group = make(6)
    blocks = [random_weights(group, 8, {}, seed) for seed in (1, 2)]
    with pytest.raises(ArchitectureError, match="circuits of latent attention can't be averaged"):
        circuit_mean(group, blocks, (0.5, 0.5))


def test_a_gain_of_zero_is_refused():
    model = tiny("deepseek_v3").build()
    model.base_model.layers[1].self_attn.kv_a_layernorm.weight.data[3] = 0
    with pytest.raises(TensorError, match=r"layers\.1\.self_attn\.kv_a_layernorm\.weight' has a gain of 0"):
        isobasin.random_alignment(model)
