"""Every factor of every group is held to every law that `Factor` states."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from isobasin import symmetries
from isobasin.architectures.layouts import alike_planes, half_planes
from isobasin.certification.nullity import spectrum
from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale, feed_forward
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.product import Product
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import make_block, make_group

ALL = dict.fromkeys(("query", "key", "value", "output"), True)
PLANES = ((0, 3), (1, 4))


@dataclass(frozen=True)
class Case:
    """A block of some group: weights by name, and what it computes of them."""

    group: Product[Any, Any]
    weights: Parts
    output: Callable[[Parts], Tensor]


def attention_case(group: AttentionGroup, biases: dict[str, bool] = ALL) -> Case:
    block = make_block(group, 12, biases, seed=1)
    return Case(group, block.weights.tensors(), lambda w: block.output(AttentionWeights(**w)))


def feedforward_case(group: FeedForwardGroup, activation: Callable[[Tensor], Tensor]) -> Case:
    generator, width = torch.Generator().manual_seed(1), 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(*group.batch, *shape, generator=generator, dtype=torch.float64)

    rows = ("up", "down", *(("gate",) if group.gate else ()))
    weights = {name: normal(group.units, width) for name in rows}
    weights |= {f"{name}_bias": normal(width if name == "down" else group.units) for name in rows}
    weights |= {"router": normal(width), "router_bias": normal()} if group.experts else {}
    hidden = torch.randn(9, width, generator=generator, dtype=torch.float64)
    return Case(group, weights, lambda w: feed_forward(FeedForwardWeights(**w), activation, hidden))


@cache
def cases() -> dict[str, Case]:
    latent = LatentGroup(6, 5, BilinearGroup(4, half_planes(4)))
    alike = BilinearGroup(9, half_planes(8), alike_planes(4, 2))
    norms = {norm.value: make_group(3, 2, 6, ALL, PLANES, norm=norm) for norm in (QueryKeyNorm.head, QueryKeyNorm.full)}
    norms["centred"] = make_group(3, 2, 6, ALL, PLANES, norm=QueryKeyNorm.centred, means=13)
    return {
        "absolute": attention_case(make_group(3, 1, 4, ALL)),
        "partly rotary": attention_case(make_group(3, 3, 6, ALL, PLANES)),
        "rotary values": attention_case(make_group(2, 1, 4, ALL, half_planes(4), rotary_value=True)),
        "planes alike": attention_case(AttentionGroup(2, 2, alike, BilinearGroup(3), key_shift=True, value_shift=True)),
        "slopes": attention_case(make_group(2, 1, 4, ALL, permuted=False)),
        "table": attention_case(make_group(3, 2, 4, ALL, table=(0, 0, 1, 1, 1))),
        **{name: attention_case(group) for name, group in norms.items()},
        "latents": attention_case(
            AttentionGroup(3, 1, BilinearGroup(2), BilinearGroup(3), latent=latent), {"output": True}
        ),
        "relu": feedforward_case(FeedForwardGroup(5, Scale.positive), torch.relu),
        "relu2": feedforward_case(FeedForwardGroup(5, Scale.positive, None, 2), lambda x: torch.relu(x).square()),
        "tanh": feedforward_case(FeedForwardGroup(5, Scale.sign), torch.tanh),
        "experts": feedforward_case(FeedForwardGroup(4, Scale.signed, Scale.positive, 1, 6, 3, shift=8), torch.relu),
    }


def named() -> Iterator[tuple[str, int]]:
    for name, case in cases().items():
        for index in range(len(all_factors(case))):
            yield name, index


def all_factors(case: Case) -> list[Factor]:
    return [*case.group.factors, *case.group.unread]


FACTORS = list(named())
factors = pytest.mark.parametrize(
    ("name", "index"),
    FACTORS,
    ids=[f"{name}-{type(all_factors(cases()[name])[i]).__name__}{i}" for name, i in FACTORS],
)


def at(name: str, index: int) -> tuple[Case, Factor]:
    case = cases()[name]
    return case, all_factors(case)[index]


def drawn(factor: Factor, seed: int, batch: tuple[int, ...] = ()) -> Parts:
    return factor.sample(torch.Generator().manual_seed(seed), batch)


def moved(factor: Factor, weights: Parts, *elements: Parts) -> Parts:
    for element in elements:
        weights = factor.act(element, weights)
    return weights


def moved_by_all(group: Product[Any, Any], element: Parts, weights: Parts) -> Parts:
    for factor in group.factors:
        weights = factor.act(element, weights)
    return weights


def assert_same(one: Parts, other: Parts, tolerance: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.shape == other[name].shape, name
        difference = (x - other[name]).abs().max() if x.numel() else torch.zeros(())
        assert float(difference) <= tolerance * max(1.0, float(x.abs().max()) if x.numel() else 0.0), name


def classes(of: type[Factor] = Factor) -> Iterator[type[Factor]]:
    for kind in of.__subclasses__():
        if not getattr(kind, "__abstractmethods__", None):
            yield kind
        yield from classes(kind)


def test_no_factor_is_left_out():
    """Whatever subclass there is in the room stands in one of the cases."""
    for module in pkgutil.iter_modules(symmetries.__path__):
        import_module(f"{symmetries.__name__}.{module.name}")
    met = {type(factor) for case in cases().values() for factor in all_factors(case)}
    assert {kind for kind in classes() if kind.__module__.startswith(symmetries.__name__)} - met == {
        kind for kind in classes() if kind.__name__ == "Shift"
    }


@factors
def test_it_is_a_group(name: str, index: int):
    _, factor = at(name, index)
    g, h, k = (drawn(factor, seed) for seed in (4, 5, 8))
    unit = factor.identity()
    assert g.keys() == factor.axes.keys() == unit.keys()
    assert_same(factor.compose(g, factor.compose(h, k)), factor.compose(factor.compose(g, h), k))
    assert_same(factor.compose(factor.inverse(g), g), unit)
    assert_same(factor.compose(g, factor.inverse(g)), unit)
    assert_same(factor.compose(g, unit), g)
    assert_same(factor.compose(unit, g), g)


@factors
def test_it_acts(name: str, index: int):
    case, factor = at(name, index)
    g, h = (drawn(factor, seed) for seed in (4, 5))
    before = {key: x.clone() for key, x in case.weights.items()}
    assert_same(moved(factor, case.weights, factor.identity()), case.weights)
    assert_same(moved(factor, case.weights, factor.compose(g, h)), moved(factor, case.weights, h, g))
    assert_same(case.weights, before, 0)


@factors
def test_the_function_does_not_see_it(name: str, index: int):
    case, factor = at(name, index)
    after = moved(factor, case.weights, drawn(factor, 4))
    assert relative_difference(case.output(case.weights), case.output(after)) < 1e-10


@factors
def test_it_knows_its_elements(name: str, index: int):
    """Also those of a batch. Nothing is in a group of maps, scales or orders whose parts are all zero."""
    _, factor = at(name, index)
    g, h = (drawn(factor, seed) for seed in (4, 5))
    unit = factor.identity()
    small = {key: 0.1 * torch.ones(shape, dtype=torch.float64) for key, shape in factor.coordinates.items()}
    charted = {**unit, **factor.chart(small)}
    for element in (unit, g, factor.compose(g, h), factor.inverse(g), charted, drawn(factor, 3, (4,))):
        assert factor.contains(element)
    zero = {key: torch.zeros_like(part) for key, part in g.items()}
    adds = all(not bool(part.any()) for part in unit.values())
    if not adds and any(part.shape[-1] > 1 for part in unit.values()):
        assert not factor.contains(zero)
    if adds and not factor.coordinates and any(part.numel() for part in unit.values()):
        assert not factor.contains({key: part + 1 for key, part in unit.items()})


@factors
def test_its_dimension_is_that_of_its_chart(name: str, index: int):
    """And coordinates of 0 are the identity."""
    case, factor = at(name, index)
    start = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in factor.coordinates.items()}
    unit = factor.identity()
    assert_same({**unit, **factor.chart(start)}, unit, 0)
    start = {key: x for key, x in start.items() if x.numel()}

    def values(coordinates: Parts) -> Parts:
        return case.group.stored(factor.act({**unit, **factor.chart(coordinates)}, case.weights))

    if not start:
        assert factor.dimension == 0
        return
    derivatives = jacrev(values)(start)
    rows = [torch.cat([by[key].flatten(case.weights[w].ndim) for key in start], -1) for w, by in derivatives.items()]
    found = spectrum(torch.cat([x.flatten(0, -2) for x in rows]))
    assert found.rank == factor.dimension == sum(x.numel() for x in start.values())
    assert found.gap > 1e6


PAIRS = [(name, i, j) for name, j in FACTORS for i in range(j) if j < len(cases()[name].group.factors)]


@pytest.mark.parametrize(("name", "i", "j"), PAIRS)
def test_it_is_carried_by_those_that_act_before_it(name: str, i: int, j: int):
    """Moving by h and then by g of the earlier factor is moving by g and then by h as g carries it."""
    case, later = at(name, j)
    _, earlier = at(name, i)
    g, h = drawn(earlier, 4), drawn(later, 5)
    one = earlier.act(g, later.act(h, case.weights))
    other = later.act(later.carried(h, earlier, g), earlier.act(g, case.weights))
    assert_same(one, other)


@factors
def test_its_canonical_gauge_is_that_of_an_orbit(name: str, index: int):
    """Of factors that have one; nothing in these generic weights is left to rounding."""
    case, factor = at(name, index)
    if type(factor).canonical is Factor.canonical:
        pytest.skip("its gauge is a matter of all units or heads together")
    found: list[Parts] = []
    loose = Loose(1e-12)
    for weights in (case.weights, moved(factor, case.weights, drawn(factor, 4))):
        element = factor.canonical(weights, loose)
        assert factor.contains({**factor.identity(), **element})
        found.append(moved(factor, weights, element))
    assert_same(*found, tolerance=1e-8)
    again = factor.canonical(found[0], loose)
    assert_same(moved(factor, found[0], again), found[0], 1e-8)
    assert not loose.names


@factors
def test_batches_act_one_by_one(name: str, index: int):
    case, factor = at(name, index)
    many = drawn(factor, 4, (3,))
    stacked = {key: torch.stack([x, 2 * x, 3 * x]) for key, x in case.weights.items()}
    after = moved(factor, stacked, many)
    for i in range(3):
        one = {key: part[i] for key, part in many.items()}
        assert_same(moved(factor, {k: x[i] for k, x in stacked.items()}, one), {k: x[i] for k, x in after.items()})


@pytest.mark.parametrize("name", cases())
def test_products_are_groups_that_the_function_does_not_see(name: str):
    """All factors at once; and reading takes back what storing did."""
    case = cases()[name]
    group = case.group
    g, h, k = (group.sample(torch.Generator().manual_seed(seed)) for seed in (4, 5, 8))
    left, right = group.compose(g, group.compose(h, k)), group.compose(group.compose(g, h), k)
    assert_same(left.tensors(), right.tensors(), 1e-9)
    assert_same(group.compose(group.inverse(g), g).tensors(), group.identity().tensors(), 1e-9)
    weights = (AttentionWeights if isinstance(group, AttentionGroup) else FeedForwardWeights).of(case.weights)
    at_once, in_turn = (
        x.tensors() for x in (group.act(group.compose(g, h), weights), group.act(g, group.act(h, weights)))
    )
    assert_same(at_once, in_turn, 1e-9)
    assert_same(group.act(g, weights).tensors(), moved_by_all(group, g.tensors(), case.weights), 0)
    assert group.contains(group.compose(g, group.inverse(h)))
    assert relative_difference(case.output(case.weights), case.output(at_once)) < 1e-9
    read = group.read(group.stored(case.weights))
    assert_same(group.read(group.stored(read)), read)
