"""Mean circuits: the nearest that heads can hold, whatever gauge the blocks come in."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from isobasin.matching.attention import distance
from isobasin.matching.averaging import circuit_mean, nearest, weighted_mean
from isobasin.symmetries import attention
from isobasin.symmetries.groups import QueryKeyNorm
from isobasin.symmetries.weights import stack
from isobasin.testing.strategies import Block, make_block, make_group, random_weights

ALL = dict.fromkeys(("query", "key", "value", "output"), True)
HALF = ((0, 2), (1, 3))
BLOCKS = {
    "absolute": make_block(make_group(3, 1, 4, ALL), 9, ALL, 0),
    "no biases": make_block(make_group(3, 1, 4, {}), 9, {}, 0),
    "grouped": make_block(make_group(2, 3, 4, ALL), 9, ALL, 0),
    "rotary, grouped": make_block(make_group(2, 2, 4, ALL, HALF), 9, ALL, 0),
    "partly rotary": make_block(make_group(3, 1, 4, ALL, ((0, 1),)), 9, ALL, 0),
    "rotary values": make_block(make_group(3, 2, 4, ALL, HALF, rotary_value=True), 9, ALL, 0),
    "value bias alone": make_block(make_group(3, 1, 4, {"value": True}), 9, {"value": True}, 0),
    "wider than the model": make_block(make_group(1, 1, 7, ALL), 5, ALL, 0),
}
each_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)


def other(block: Block) -> attention.AttentionWeights:
    biases = {name.removesuffix("_bias"): True for name in block.weights.tensors() if name.endswith("_bias")}
    return random_weights(block.group, block.weights.key.shape[-2], biases, 5)


def moved(block: Block, weights: attention.AttentionWeights, seed: int = 1) -> attention.AttentionWeights:
    """The same heads in the same order, in a random gauge."""
    element = block.group.sample(torch.Generator().manual_seed(seed))
    still = block.group.identity()
    return block.group.act(element.having({"outer": still.outer, "inner": still.inner}), weights)


def test_a_mean_is_exact_at_its_ends_and_between_equals():
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(3, 1000, generator=generator, dtype=torch.float64)
    assert torch.equal(weighted_mean([x, y, z], [1, 0, 0]), x)
    assert torch.equal(weighted_mean([x, y, z], [0, 0, 1]), z)
    assert torch.equal(weighted_mean([x, x, x], [0.3, 0.5, 0.2]), x)
    assert (weighted_mean([x, y, z], [0.3, 0.5, 0.2]) - (0.3 * x + 0.5 * y + 0.2 * z)).abs().max() < 1e-14
    assert (weighted_mean([x, y], [-1, 2]) - (2 * y - x)).abs().max() < 1e-14
    # 1 - t and t add to 0 there, as floating-point numbers.
    assert torch.equal(weighted_mean([x, y], [1 - 1e16, 1e16]), torch.lerp(x, y, 1e16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_nearest_matrix_of_a_rank(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    lefts = list(torch.randn(3, 2, 12, 3, generator=generator, dtype=dtype))
    rights = list(torch.randn(3, 2, 10, 3, generator=generator, dtype=dtype))
    weights = (0.5, 0.3, 0.2)
    whole = sum(w * x @ y.mH for w, x, y in zip(weights, lefts, rights, strict=True))
    u, sigma, vh = torch.linalg.svd(whole)
    left, right, lost, total = nearest(lefts, rights, weights)
    assert (left @ right.mH - u[..., :3] * sigma[..., None, :3] @ vh[..., :3, :]).abs().max() < 1e-12
    assert (lost - sigma[..., 3:].square().sum(-1)).abs().max() < 1e-11
    assert (total - whole.abs().square().sum((-2, -1))).abs().max() < 1e-11
    assert (left.mH @ left - right.mH @ right).abs().max() < 1e-12


@each_block
def test_at_its_ends_it_is_the_first_block_and_computes_what_the_second_does(block: Block):
    second = moved(block, other(block))
    first = circuit_mean(block.group, [block.weights, second], (1, 0), 1e8)
    assert (block.output(first.weights) - block.output()).abs().max() < 1e-12
    if block.group.query_key.features <= block.weights.key.shape[-2]:  # otherwise some of the gauge is arbitrary
        assert distance(block.weights, first.weights) < 1e-12
    last = circuit_mean(block.group, [block.weights, second], (0, 1), 1e8)
    assert (block.output(last.weights) - block.output(second)).abs().max() < 1e-11
    for found in (first, last):
        assert max(float(found.query_key), float(found.value_output)) < 1e-14


@each_block
def test_the_gauges_of_the_blocks_do_not_matter(block: Block):
    blocks = [block.weights, other(block), random_like(block, 7)]
    weights = (0.2, 0.5, 0.3)
    one = circuit_mean(block.group, blocks, weights, 1e8)
    again = circuit_mean(block.group, [moved(block, w, i) for i, w in enumerate(blocks)], weights, 1e8)
    assert (block.output(one.weights) - block.output(again.weights)).abs().max() < 1e-10
    assert abs(float(one.query_key - again.query_key)) < 1e-12
    assert (block.output(one.weights) - block.output()).abs().max() > 0.1


def random_like(block: Block, seed: int) -> attention.AttentionWeights:
    generator = torch.Generator().manual_seed(seed)
    return block.weights.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


@each_block
def test_equal_functions_average_to_the_same_block(block: Block):
    for t in (0.25, 0.5, 1.0):
        found = circuit_mean(block.group, [block.weights, moved(block, block.weights)], (1 - t, t), 1e8)
        assert (block.output(found.weights) - block.output()).abs().max() < 1e-11


def _rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight if bias is None else torch.cat([weight, bias.unsqueeze(-2)], -2)


def _cut(matrix: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(matrix)
    return u[..., :rank] * sigma[..., None, :rank].to(u.dtype) @ vh[..., :rank, :]


def _planes(weight: Tensor, bias: Tensor | None) -> Tensor:
    x = _rows(weight, bias)
    return torch.complex(x[..., :2], x[..., 2:])


def test_circuits_of_grouped_queries_are_the_best_that_one_key_can_serve():
    """Written plainly: all queries of a key below each other, the mean formed, and its SVD cut."""
    block = BLOCKS["grouped"]
    pair = [block.weights, other(block)]
    found = circuit_mean(block.group, pair, (0.4, 0.6), 1e8)

    def scores(w: attention.AttentionWeights) -> Tensor:
        return _rows(w.query, w.query_bias).flatten(1, 2) @ w.key.mT

    def values(w: attention.AttentionWeights) -> Tensor:
        return w.value @ w.output.flatten(1, 2).mT

    for circuit, lost in ((scores, found.query_key), (values, found.value_output)):
        mean = 0.4 * circuit(pair[0]) + 0.6 * circuit(pair[1])
        assert (circuit(found.weights) - _cut(mean, 4)).abs().max() < 1e-12
        assert abs(float(lost) - float((mean - _cut(mean, 4)).norm() / mean.norm())) < 1e-12


def test_under_rotary_positions_every_plane_is_cut_to_rank_one():
    block = BLOCKS["rotary, grouped"]
    pair = [block.weights, other(block)]
    found = circuit_mean(block.group, pair, (0.4, 0.6), 1e8)

    def circuit(w: attention.AttentionWeights) -> Tensor:
        query = _planes(w.query, w.query_bias).flatten(1, 2).mT.unsqueeze(-1)
        return query @ _planes(w.key, w.key_bias).mT.unsqueeze(-1).mH

    mean = 0.4 * circuit(pair[0]) + 0.6 * circuit(pair[1])
    assert (circuit(found.weights) - _cut(mean, 1)).abs().max() < 1e-12
    assert abs(float(found.query_key) - float((mean - _cut(mean, 1)).norm() / mean.norm())) < 1e-12


def test_what_value_and_output_biases_add_together_is_averaged():
    block = BLOCKS["absolute"]
    pair = [block.weights, other(block)]
    found = circuit_mean(block.group, pair, (0.4, 0.6), 1e8).weights

    def added(w: attention.AttentionWeights) -> Tensor:
        assert w.value_bias is not None
        assert w.output_bias is not None
        return w.output_bias + torch.einsum("gm,gsdm->d", w.value_bias, w.output)

    assert (added(found) - 0.4 * added(pair[0]) - 0.6 * added(pair[1])).abs().max() < 1e-12


def test_the_line_has_no_jumps():
    block = BLOCKS["partly rotary"]
    second = random_like(block, 3).map(lambda x: 0.3 * x)
    second = attention.AttentionWeights(**{n: x + second.tensors()[n] for n, x in block.weights.tensors().items()})
    line = [
        circuit_mean(block.group, [block.weights, second], (1 - t, t), 1e8).weights
        for t in torch.linspace(0, 1, 101).tolist()
    ]
    steps = [float(distance(x, y)) for x, y in pairwise(line)]
    assert max(steps) < 5 * sum(steps) / len(steps)


def test_a_stack_of_blocks_is_each_of_them_and_dead_heads_stay_exact():
    block = BLOCKS["absolute"]
    dead = block.weights.map(torch.clone)
    assert dead.query_bias is not None
    dead.query[0], dead.query_bias[0], dead.value[1], dead.key[2, :, 1] = 0, 0, 0, 0
    ends = stack([dead, block.weights]), stack([block.weights, dead])
    found = circuit_mean(block.group, ends, (0.5, 0.5), 1e8)
    alone = circuit_mean(block.group, [dead, block.weights], (0.5, 0.5), 1e8)
    assert (block.output(found.weights[0]) - block.output(alone.weights)).abs().max() < 1e-12
    for weights, expected in (((1, 0), dead), ((0, 1), block.weights)):
        end = circuit_mean(block.group, [dead, block.weights], weights, 1e8)
        assert (block.output(end.weights) - block.output(expected)).abs().max() < 1e-12


@pytest.mark.parametrize("norm", list(QueryKeyNorm))
def test_normalised_queries_and_keys_are_averaged_themselves(norm):
    group = make_group(2, 2, 4, {}, HALF, norm=norm, sink=True)
    a, b = (random_weights(group, 9, {}, seed) for seed in (1, 2))
    same = circuit_mean(group, [a, b], [1.0, 0.0]).weights
    for name, tensor in a.tensors().items():
        assert torch.allclose(getattr(same, name), tensor, atol=1e-12), name
    found = circuit_mean(group, [a, b], [0.5, 0.5])
    assert float(found.query_key) == 0
    assert float(found.value_output) > 0.1
    assert found.weights.sink is not None
    assert torch.allclose(found.weights.sink, (a.sink + b.sink) / 2)
    # In the gauge nearest to the first model: signs of planes, turns and trades may differ from the mean's.
    mean = [(x + y) / 2 for x, y in ((a.query, b.query), (a.key, b.key))]
    for mine, theirs in zip(mean, (found.weights.query, found.weights.key), strict=True):
        assert torch.allclose(mine.abs().sort(-1).values.sum(-2), theirs.abs().sort(-1).values.sum(-2))
