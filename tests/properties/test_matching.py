"""What the solvers promise, on random, planted and degenerate problems."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from isobasin.choices import HeadCost, Method
from isobasin.matching import circuits, paper, rotary
from isobasin.matching.attention import distance, match
from isobasin.matching.heads import assign, head_costs, head_permutation
from isobasin.matching.sides import all_sides
from isobasin.symmetries import attention
from isobasin.symmetries.centred import Centred
from isobasin.symmetries.groups import QUERY_KEY, AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import (
    Block,
    blocks,
    conditions,
    element,
    make_block,
    make_group,
    random_weights,
    seeds,
)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Where planes have their real and imaginary parts in `features`.
EVEN_AND_ODD = slice(0, None, 2), slice(1, None, 2)


def features(columns: Tensor) -> Tensor:
    """Complex columns as real ones, of one slot."""
    return torch.view_as_real(columns).flatten(-2).unsqueeze(-3)


@settings(max_examples=15)
@given(seeds(), st.sampled_from([(), (0, 1)]), st.sampled_from([1.0, 1e3]), st.sampled_from([1.0, 1e-2, 1e-4, 1e-6]))
def test_float32_never_decides_which_head_is_which(seed, planes, condition, apart):
    """Of heads that are nearly the same, or moved by ill-conditioned maps, which single precision can't tell apart."""
    pair = BilinearGroup(6, tuple((i, i + 3) for i in planes))
    group = AttentionGroup(3, 2, pair, BilinearGroup(5))
    generator = torch.Generator().manual_seed(seed)
    common, own = (random_weights(group, 40, {}, seed + i) for i in range(2))
    shape = {name: t[:1] if name in ("key", "value") else t[:1, :1] for name, t in common.tensors().items()}
    reference = AttentionWeights(**{n: shape[n] + apart * t for n, t in own.tensors().items()})
    planted = group.sample(generator, condition=condition)
    model = group.act(planted, reference)
    back = group.inverse(planted)
    outer, inner = head_permutation(group, reference, model)
    assert torch.equal(outer, back.outer)
    assert torch.equal(inner, back.inner)


@given(seeds(), st.integers(1, 6), st.floats(-4, 4), st.sampled_from([0.0, 0.3, 3.0]))
def test_planes_reach_the_global_minimum(seed: int, rows: int, spread: float, noise: float):
    """Never above Brent, nor above any point of a dense grid over modulus and phase."""
    generator = torch.Generator().manual_seed(seed)
    planes = 5

    def columns() -> Tensor:
        return torch.complex(normal(generator, rows, planes), normal(generator, rows, planes))

    b_left, b_right = columns() * math.exp(spread), columns()
    u = torch.complex(*normal(generator, 2, planes))
    a_left, a_right = b_left * u + noise * columns(), b_right / u.conj() + noise * columns()
    problem = rotary.PlaneProblem.of(*map(features, (a_left, b_left, a_right, b_right)), EVEN_AND_ODD)
    found = rotary.align_planes(problem)

    def objective(v: Tensor) -> Tensor:
        return (a_left - b_left * v).abs().square().sum(-2) + (a_right - b_right / v.conj()).abs().square().sum(-2)

    best = objective(found)
    scale = a_left.abs().square().sum(-2) + a_right.abs().square().sum(-2)
    constant = problem.objective(found) + scale
    torch.testing.assert_close(constant, best, rtol=1e-8, atol=1e-8 * float(scale.max()))
    assert (best <= objective(paper.brent_planes(problem)) + 1e-9 * scale).all()
    moduli = found.abs().unsqueeze(-1) * torch.logspace(-2, 2, 161, dtype=torch.float64)
    phases = torch.linspace(0, 2 * math.pi, 49, dtype=torch.float64)
    grid = torch.polar(moduli.unsqueeze(-1).expand(-1, -1, 49), phases.expand(planes, 161, 49)).flatten(1)
    left = problem.eta_left[:, None] * grid.abs().square() + problem.eta_right[:, None] / grid.abs().square()
    cross = (grid.conj() * problem.gamma_left[:, None]).real + (problem.gamma_right[:, None] / grid).real
    assert (constant <= (left - 2 * cross).amin(-1) + scale + 1e-9 * scale).all()
    if noise == 0:
        assert (best <= 1e-18 * scale).all()


@given(seeds(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_assignment_is_the_best_of_all(seed: int, g: int, s: int, ties: bool):
    """Against brute force over the whole wreath product."""
    costs = normal(torch.Generator().manual_seed(seed), g, g, s, s)
    costs = (2 * costs).round() if ties else costs
    outer, inner = assign(costs)

    def total(pi: tuple[int, ...], rho: tuple[tuple[int, ...], ...]) -> float:
        return sum(float(costs[j, pi[j], t, rho[j][t]]) for j in range(g) for t in range(s))

    orders = list(itertools.permutations(range(s)))
    best = min(total(pi, rho) for pi in itertools.permutations(range(g)) for rho in itertools.product(orders, repeat=g))
    found = total(tuple(outer.tolist()), tuple(tuple(row) for row in inner.tolist()))
    assert found == pytest.approx(best, abs=1e-9)


@given(seeds(), st.integers(1, 3), st.integers(1, 2))
def test_grouped_assignment_undoes_a_permutation(seed: int, g: int, s: int):
    group = make_group(g, s, 3, {})
    weights = random_weights(group, 7, {}, seed)
    g_random = element(group, seed)
    moved = attention.permute(weights, g_random.outer, g_random.inner)
    outer, inner = assign(head_costs(group, weights, moved))
    back = attention.permute(moved, outer, inner)
    assert all(torch.equal(t, getattr(back, name)) for name, t in weights.tensors().items())


def _sum(products: list[Tensor]) -> Tensor:
    """The sum of matrices that may lack the last rows and columns, those of biases."""
    total = torch.zeros([max(sizes) for sizes in zip(*(x.shape for x in products), strict=True)], dtype=torch.float64)
    for x in products:
        total[: x.shape[0], : x.shape[1]] += x.real
    return total


def formed_cost(group: attention.AttentionGroup, a: AttentionWeights, b: AttentionWeights, i: int, j: int) -> float:
    """Squared distance of two query heads' circuits, with every circuit written out."""
    total = 0.0
    formed: list[list[Tensor]] = []
    for weights, head in ((a, i), (b, j)):
        g, s = divmod(head, group.queries_per_kv)
        circuits_of: list[Tensor] = []
        for pair, circuit in all_sides(group, weights).items():
            products = [
                product
                for sides in circuit
                for left, right in [[x[g, min(s, x.shape[1] - 1)] for x in sides.blocks()]]
                for product in left @ right.mH
            ]
            # Where the two features of a plane may change places, all of Q K^T is compared at once.
            circuits_of += [_sum(products)] if pair == QUERY_KEY and isinstance(group.normed, Centred) else products
        formed.append(circuits_of)
    total += sum(float((x - y).abs().square().sum()) for x, y in zip(*formed, strict=True))
    for x, y in ((a.table, b.table), (a.sink, b.sink)):
        if x is not None and y is not None:
            gap = x.flatten(0, 1)[i] - y.flatten(0, 1)[j]
            # What is common to all entries of one number is free.
            for number in set(group.table) if gap.ndim else ():
                entries = [entry for entry, own in enumerate(group.table) if own == number]
                gap[entries] -= gap[entries].mean()
            total += float(gap.square().sum())
    return total


@given(blocks(max_heads=2, max_queries=2), seeds())
def test_costs_are_those_of_formed_circuits(block: Block, seed: int):
    other = random_weights(block.group, block.hidden.shape[-1], _biases(block), seed)
    costs = head_costs(block.group, block.weights, other)
    s = block.group.queries_per_kv
    for i, j in itertools.product(range(block.group.heads), repeat=2):
        expected = formed_cost(block.group, block.weights, other, i, j)
        assert float(costs[i // s, j // s, i % s, j % s]) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def _biases(block: Block) -> dict[str, bool]:
    return {r: getattr(block.weights, f"{r}_bias") is not None for r in ("query", "key", "value", "output")}


@given(blocks(), seeds(), seeds(), conditions(100))
def test_costs_do_not_change_under_the_continuous_group(block: Block, seed: int, other_seed: int, condition: float):
    group = block.group
    other = random_weights(group, block.hidden.shape[-1], _biases(block), other_seed)
    g, unit = element(group, seed, condition), group.identity()
    still = g.having({"outer": unit.outer, "inner": unit.inner})
    moved = group.act(still, other)
    kinds = [HeadCost.rotary] if group.query_key.planes else [HeadCost.rotary, HeadCost.frobenius, HeadCost.centred]
    for kind in kinds:
        before, after = head_costs(group, block.weights, other, kind), head_costs(group, block.weights, moved, kind)
        zero = other.map(torch.zeros_like)
        size = float(head_costs(group, block.weights, zero, kind).max() + head_costs(group, other, zero, kind).max())
        assert float((before - after).abs().max()) < 1e-12 * condition * size


@given(blocks(), seeds(), conditions(100))
def test_circuit_error_is_blind_to_the_group_and_sees_the_rest(block: Block, seed: int, condition: float):
    group = block.group
    moved = group.act(element(group, seed, condition), block.weights)
    outer, inner = assign(head_costs(group, block.weights, moved))
    ordered = attention.permute(moved, outer, inner)
    if group.norm is not None:  # scores are no function of circuits there, so signs and trades have to be undone too
        ordered = match(group, block.weights, moved).moved
    assert float(circuits.circuit_error(group, block.weights, ordered)) < 1e-6
    assert float(circuits.bias_error(group, block.weights, ordered)) < 1e-8
    generator = torch.Generator().manual_seed(seed)
    changed = block.weights.map(lambda t: t * (1 + 0.01 * normal(generator, *t.shape)))
    assert 1e-4 < float(circuits.circuit_error(group, block.weights, changed)) < 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", ["vanilla", "grouped-rotary"])
def test_rounding_is_predicted(dtype, condition, kind):
    """Within a factor of 3 of what storing the weights does to the circuits."""
    planes = () if kind == "vanilla" else tuple((j, j + 4) for j in range(4))
    group = make_group(4, 1 if kind == "vanilla" else 2, 8, {}, planes)
    weights = random_weights(group, 32, {}, 1)
    moved = group.act(element(group, 2, condition), weights)
    stored = moved.map(lambda t: t.to(dtype).double())
    measured = float(circuits.circuit_error(group, moved, stored))
    predicted = float(circuits.rounding(group, moved, dtype))
    assert predicted / 3 < measured < predicted * 3


def test_degenerate_heads_are_named():
    group = make_group(4, 1, 3, {})
    weights = random_weights(group, 8, {}, 0)
    assert circuits.degeneracy(group, weights) == circuits.Degeneracy((), ())
    broken = weights.map(torch.clone)
    broken.key[1, :, 2] = broken.key[1, :, 0] + broken.key[1, :, 1]
    broken.value[3] = 0
    broken.query[2], broken.key[2] = 2 * broken.query[0], broken.key[0] / 2
    found = circuits.degeneracy(group, broken)
    assert set(found.rank_deficient) == {("key", 1), ("value", 3)}
    assert found.duplicates == ((0, 2),)


def degenerate(kind: str, weights: AttentionWeights) -> AttentionWeights:
    w = weights.map(torch.clone)
    if kind == "zero head":
        for tensor in (w.query, w.key, w.value, w.output):
            tensor[0] = 0
    elif kind == "zero keys":
        w.key[:] = 0
    elif kind == "rank deficient":
        w.key[0, :, 1], w.value[1, :, 0] = w.key[0, :, 0], 0
    elif kind == "duplicate heads":
        for tensor in (w.query, w.key, w.value, w.output):
            tensor[1] = tensor[0]
    elif kind == "huge and tiny":
        scales = {"query": 1e9, "query_bias": 1e9, "key": 1e-9, "key_bias": 1e-9}
        return AttentionWeights(**{name: t * scales.get(name, 1) for name, t in w.tensors().items()})
    else:
        assert kind == "all zero"
        return weights.map(torch.zeros_like)
    return w


DEGENERATE = ("zero head", "zero keys", "rank deficient", "duplicate heads", "huge and tiny", "all zero")
# Every two values of two arguments meet.
PAIRWISE = [
    (kind, ("model", "reference", "both")[(i + j) % 3], ("vanilla", "rotary")[(i + j) % 2], method)
    for i, kind in enumerate(DEGENERATE)
    for j, method in enumerate(Method)
]


@pytest.mark.parametrize(("kind", "side", "positions", "method"), PAIRWISE)
def test_degenerate_heads_stay_finite_and_exact(kind, side, positions, method):
    has = {"query": True, "key": True, "value": True, "output": True}
    group = make_group(3, 1, 4, has, ((0, 2), (1, 3)) if positions == "rotary" else ())
    block = make_block(group, 8, has, 4)
    reference, model = block.weights, random_weights(group, 8, has, 5)
    reference = degenerate(kind, reference) if side != "model" else reference
    model = degenerate(kind, model) if side != "reference" else model
    found = match(group, reference, model, method=method, max_condition=1e8)
    for name, part in {**found.element.tensors(), **found.moved.tensors()}.items():
        assert part.isfinite().all(), name
    assert relative_difference(block.output(model), block.output(found.moved)) < 1e-6
    after = distance(reference, found.moved)
    assert after.isfinite()


@given(blocks(), seeds(), st.sampled_from([HeadCost.rotary, HeadCost.frobenius, HeadCost.centred]))
def test_matching_two_unrelated_blocks(block: Block, seed: int, cost: HeadCost):
    """The distance never grows beyond that of the permuted model, the function stays, and the same input gives the
    same answer to the bit."""
    group = block.group
    other = random_weights(group, block.hidden.shape[-1], _biases(block), seed)
    found = match(group, block.weights, other, head_cost=cost, max_condition=1e6)
    again = match(group, block.weights, other, head_cost=cost, max_condition=1e6)
    told = [circuits.rounding(group, found.moved, torch.float32, known=sides) for sides in (found.sides, None)]
    torch.testing.assert_close(*told, rtol=1e-8, atol=0)
    for name, part in found.element.tensors().items():
        assert torch.equal(part, again.element.tensors()[name]), name
    permuted = attention.permute(other, found.element.outer, found.element.inner)
    if not (group.key_shift or group.value_shift):
        assert distance(block.weights, found.moved) <= distance(block.weights, permuted) * (1 + 1e-9) + 1e-9
    assert relative_difference(block.output(other), block.output(found.moved)) < 1e-8


@settings(max_examples=60)
@given(blocks(), seeds(), conditions())
def test_matching_recovers_any_element(block: Block, seed: int, condition: float):
    group = block.group
    moved = group.act(element(group, seed, condition), block.weights)
    found = match(group, block.weights, moved)
    for name, tensor in block.weights.tensors().items():
        assert relative_difference(tensor, getattr(found.moved, name)) < 1e-7, name


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1.0, 1e12, 1e20])
def test_biases_meet_where_rows_have_unlike_sizes(size: float):
    """A value feature written with weights of another size, beside two that write the same: biases come nearer."""
    has = dict.fromkeys(("query", "key", "value", "output"), True)
    group = make_group(2, 1, 4, has)
    reference, other = (random_weights(group, 6, has, seed) for seed in (1, 2))
    other.output[..., 1] *= size
    other.output[..., 2] = other.output[..., 3]
    found = match(group, reference, other, method=Method.orthogonal)
    still = group.act(found.element.having({"value_shift": torch.zeros(2, 4).double()}), other)

    def gap(weights: AttentionWeights) -> Tensor:
        value, output = weights.value_bias, weights.output_bias
        return torch.cat([(reference.value_bias - value).flatten(), reference.output_bias - output]).norm()

    rounding = 1e-14 * other.output.norm() * found.element.parts["value_shift"].norm()
    assert gap(found.moved) < 0.9 * gap(still) + rounding
