"""The laws of `AttentionGroup` and `BilinearGroup`, over blocks of every kind."""

from __future__ import annotations

import math

import torch
from hypothesis import given, strategies as st

from isobasin.symmetries import attention, permutation
from isobasin.symmetries.bilinear import Roles
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, pair_factors
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import Block, blocks, conditions, element, make_block, make_group, seeds


def assert_close(a: AttentionWeights, b: AttentionWeights, tolerance: float) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        assert relative_difference(tensor, getattr(b, name)) <= tolerance, name


@given(blocks(), seeds(), conditions(), st.booleans())
def test_the_function_is_preserved(block: Block, seed: int, condition: float, causal: bool):
    original = block.weights.map(torch.clone)
    moved = block.group.act(element(block.group, seed, condition), block.weights)
    before, after = block.output(causal=causal), block.output(moved, causal=causal)
    assert relative_difference(before, after) <= 1e-12 * max(condition, 10)
    assert all(torch.equal(t, getattr(original, name)) for name, t in block.weights.tensors().items())


@given(blocks())
def test_the_identity_changes_nothing(block: Block):
    moved = block.group.act(block.group.identity(), block.weights)
    assert all(torch.equal(t, getattr(moved, name)) for name, t in block.weights.tensors().items())


@given(blocks(), seeds(), conditions(100))
def test_the_inverse_undoes(block: Block, seed: int, condition: float):
    group, g = block.group, element(block.group, seed, condition)
    back = group.act(group.inverse(g), group.act(g, block.weights))
    assert_close(block.weights, back, 1e-10)
    assert_close(
        block.weights,
        group.act(group.compose(g, group.inverse(g)), block.weights),
        1e-10,
    )


@given(blocks(), seeds(), seeds())
def test_composition_acts_as_composition(block: Block, first_seed: int, second_seed: int):
    group = block.group
    first, second = element(group, first_seed), element(group, second_seed)
    in_turn = group.act(second, group.act(first, block.weights))
    at_once = group.act(group.compose(second, first), block.weights)
    assert_close(in_turn, at_once, 1e-10)


@given(blocks(), seeds(), seeds(), seeds())
def test_composition_is_associative_and_has_a_unit(block: Block, x: int, y: int, z: int):
    group = block.group
    a, b, c = (element(group, seed) for seed in (x, y, z))
    left = group.compose(group.compose(a, b), c)
    right = group.compose(a, group.compose(b, c))
    unit = group.identity()
    for one, other in (
        (left, right),
        (group.compose(a, unit), a),
        (group.compose(unit, a), a),
        (group.compose(group.inverse(a), a), unit),
    ):
        for name, part in one.tensors().items():
            torch.testing.assert_close(part, other.tensors()[name], rtol=1e-9, atol=1e-9)


def test_a_seed_draws_planes_before_what_does_not_rotate():
    """So it always was, and a seed means one model."""
    partly = BilinearGroup(6, ((0, 3),))
    found = AttentionGroup(2, 1, partly, partly).sample(torch.Generator().manual_seed(3), condition=10.0)
    generator = torch.Generator().manual_seed(3)
    for count in ((2,), (2, 1)):
        torch.rand(*count, generator=generator, dtype=torch.float64)
    for pair in ("query_key", "value_output"):
        size, angle = torch.rand(2, 2, 1, generator=generator, dtype=torch.float64)
        planes = torch.polar(((2 * size - 1) * 0.5 * math.log(10)).exp(), 2 * math.pi * angle)
        torch.testing.assert_close(found.parts[f"{pair}.planes"], planes, rtol=1e-14, atol=0)
        torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64)


@given(blocks(), seeds())
def test_sampled_shifts_are_zero_where_the_group_has_none(block: Block, seed: int):
    g = element(block.group, seed)
    assert bool(g.parts["key_shift"].any()) == block.group.key_shift
    assert bool(g.parts["value_shift"].any()) == block.group.value_shift


@given(blocks(), seeds())
def test_moving_keeps_heads_whole(block: Block, seed: int):
    """Every query head of the moved block is one head of the original: its own attention output is unchanged."""
    group, g = block.group, element(block.group, seed)
    moved = group.act(g, block.weights)
    original = [_scores(block.weights, group, i) for i in range(group.heads)]
    for new, old in enumerate(g.head_permutation().tolist()):
        assert relative_difference(original[old], _scores(moved, group, new)) < 1e-9


def _scores(weights: AttentionWeights, group: attention.AttentionGroup, head: int) -> torch.Tensor:
    """`Q K^T` of one query head, gains multiplied in; what its planes add at no rotation is part of it."""
    g, s = divmod(head, group.queries_per_kv)
    query, key = weights.query, weights.key
    if weights.query_gain is not None and weights.key_gain is not None:
        query, key = query * weights.query_gain.unsqueeze(-2), key * weights.key_gain.unsqueeze(-2)
    return query[g, s] @ key[g].mT


@given(blocks(), seeds())
def test_batches_act_one_by_one(block: Block, seed: int):
    group = block.group
    generator = torch.Generator().manual_seed(seed)
    many = group.sample(generator, (3,))
    weights = [make_block(group, block.hidden.shape[-1], _biases(block), seed + i).weights for i in range(3)]
    stacked = AttentionWeights(**{n: torch.stack([getattr(w, n) for w in weights]) for n in weights[0].tensors()})
    moved = group.act(many, stacked)
    for i in range(3):
        assert_close(group.act(many[i], weights[i]), moved[i], 1e-12)


def _biases(block: Block) -> dict[str, bool]:
    return {r: getattr(block.weights, f"{r}_bias") is not None for r in ("query", "key", "value", "output")}


@given(blocks(), seeds(), conditions())
def test_bilinear_elements_as_matrices(block: Block, seed: int, condition: float):
    """`L U^T` and `R U^{-1}` with U written out, and the condition number that was asked for."""
    pair, generator = block.group.query_key, torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, pair.features, generator=generator, dtype=torch.float64)
    matrix, right, sizes = torch.eye(pair.features).double().expand(2, -1, -1), x, []
    for factor in pair_factors("pair", pair, Roles(("l",), ("r",)), ()):
        u = factor.sample(generator, (2,), condition)
        matrix = factor.act(u, {"l": matrix})["l"]
        right = factor.act(u, {"r": right})["r"]
        sizes += [factor.sizes(u)["pair"]]
        if len(pair.linear) > 1 and "pair.matrix" in u:
            inner = torch.linalg.svdvals(u["pair.matrix"])
            expected = torch.full((2,), condition).double()
            torch.testing.assert_close(inner[:, 0] / inner[:, -1], expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(right, x @ torch.linalg.inv(matrix.mT), rtol=1e-9, atol=1e-9)
    singular, stated = torch.linalg.svdvals(matrix), torch.cat(sizes, -1)
    stated = stated.amax(-1) / stated.amin(-1)
    torch.testing.assert_close(singular[:, 0] / singular[:, -1], stated, rtol=1e-9, atol=0)
    assert (stated <= condition * (1 + 1e-9)).all()


@given(st.integers(1, 6), seeds(), seeds())
def test_permutations(heads: int, x: int, y: int):
    p, q = (permutation.sample((2,), heads, torch.Generator().manual_seed(seed)) for seed in (x, y))
    values = torch.arange(2 * heads * 3).reshape(2, heads, 3)
    assert permutation.is_permutation(p)
    moved = permutation.take(values, p)
    for batch in range(2):
        for j in range(heads):
            assert torch.equal(moved[batch, j], values[batch, p[batch, j]])
    assert torch.equal(permutation.take(moved, q), permutation.take(values, permutation.take(p, q)))
    assert torch.equal(permutation.take(moved, p.argsort(-1)), values)


def test_a_rotated_key_bias_is_not_free():
    """The counterpart: a shift that the group doesn't have changes the function."""
    has = {"query": True, "key": True, "value": True, "output": True}
    block = make_block(make_group(2, 1, 4, has, ((0, 2), (1, 3))), 6, has, 3)
    assert not block.group.key_shift
    shifted = AttentionWeights(**{**block.weights.tensors(), "key_bias": block.weights.key_bias + 1})  # pyright: ignore
    assert relative_difference(block.output(), block.output(shifted)) > 1e-2
