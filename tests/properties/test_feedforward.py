"""Feed-forward blocks: group laws, the function that elements preserve, and its dimension measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.func import jacrev

from isobasin.architectures.activations import feedforward_group
from isobasin.symmetries import feedforward
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.testing.assertions import relative_difference
from isobasin.testing.strategies import conditions, seeds

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "relu2": lambda x: torch.relu(x).square(),
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Block:
    """One feed-forward block with an input."""

    activation: str
    group: FeedForwardGroup
    weights: FeedForwardWeights
    hidden: Tensor

    def output(self, weights: FeedForwardWeights | None = None) -> Tensor:
        weights = self.weights if weights is None else weights
        return feedforward.feed_forward(weights, ACTIVATIONS[self.activation], self.hidden)


def make_block(activation: str, units: int, width: int, seed: int, *, gated: bool, bias: bool = True) -> Block:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = {"up": normal(units, width), "down": normal(units, width)}
    parts |= {"gate": normal(units, width)} if gated else {}
    if bias:
        parts |= {f"{name}_bias": normal(width if name == "down" else units) for name in parts}
    group = feedforward_group(units, activation, gated=gated)
    return Block(activation, group, FeedForwardWeights(**parts), normal(3, 7, width))


@st.composite
def blocks(draw: Any) -> Block:
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    units, width = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return make_block(activation, units, width, draw(seeds()), gated=draw(st.booleans()), bias=draw(st.booleans()))


def element(group: FeedForwardGroup, seed: int, condition: float = 10.0) -> FeedForwardElement:
    return group.sample(torch.Generator().manual_seed(seed), condition=condition)


def assert_close(a: FeedForwardWeights, b: FeedForwardWeights, tolerance: float = 1e-12) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        assert relative_difference(tensor, getattr(b, name)) <= tolerance, name


@given(blocks(), seeds(), conditions(1e6))
def test_the_function_is_preserved(block: Block, seed: int, condition: float):
    original = block.weights.map(torch.clone)
    g = element(block.group, seed, condition)
    assert block.group.contains(g)
    moved = block.group.act(g, block.weights)
    assert relative_difference(block.output(), block.output(moved)) <= 1e-11
    assert all(torch.equal(t, getattr(original, name)) for name, t in block.weights.tensors().items())


@given(blocks())
def test_the_identity_changes_nothing(block: Block):
    moved = block.group.act(block.group.identity(), block.weights)
    assert all(torch.equal(t, getattr(moved, name)) for name, t in block.weights.tensors().items())


@given(blocks(), seeds())
def test_the_inverse_undoes(block: Block, seed: int):
    g = element(block.group, seed)
    moved = block.group.act(g, block.weights)
    assert_close(block.weights, block.group.act(block.group.inverse(g), moved))
    unit = block.group.compose(block.group.inverse(g), g)
    for name, part in block.group.identity().tensors().items():
        torch.testing.assert_close(unit.tensors()[name], part, rtol=1e-14, atol=0)


@given(blocks(), seeds(), seeds(), seeds())
def test_composition_acts_as_composition_and_is_associative(block: Block, x: int, y: int, z: int):
    a, b, c = (element(block.group, seed) for seed in (x, y, z))
    in_turn = block.group.act(b, block.group.act(a, block.weights))
    assert_close(in_turn, block.group.act(block.group.compose(b, a), block.weights))
    left = block.group.compose(c, block.group.compose(b, a))
    right = block.group.compose(block.group.compose(c, b), a)
    assert torch.equal(left.permutation, right.permutation)
    for name, part in left.tensors().items():
        torch.testing.assert_close(part, right.tensors()[name], rtol=1e-14, atol=0)
    assert block.group.contains(left)


@given(blocks(), seeds())
def test_batches_act_one_by_one(block: Block, seed: int):
    many = block.group.sample(torch.Generator().manual_seed(seed), (3,))
    stacked = block.weights.map(lambda t: torch.stack([t, 2 * t, 3 * t]))
    moved = block.group.act(many, stacked)
    for i in range(3):
        expected = block.group.act(many[i], stacked.map(lambda t, i=i: t[i]))
        assert_close(expected, moved.map(lambda t, i=i: t[i]))


def test_by_hand():
    """ReLU²: the row scaled by 3 leaves 1/9 for the way out, and the bias goes with its row."""
    group = FeedForwardGroup(2, Scale.positive, None, 2)
    weights = FeedForwardWeights(
        up=torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(),
        down=torch.tensor([[9.0, 18.0], [1.0, 1.0]]).double(),
        up_bias=torch.tensor([5.0, 6.0]).double(),
        down_bias=torch.tensor([7.0, 8.0]).double(),
    )
    scales = torch.tensor([1.0, 3.0]).double()
    g = group.identity().having({"permutation": torch.tensor([1, 0]), "up": scales})
    moved = group.act(g, weights).tensors()
    expected = {
        "up": [[3.0, 4.0], [3.0, 6.0]],
        "down": [[1.0, 1.0], [1.0, 2.0]],
        "up_bias": [6.0, 15.0],
        "down_bias": [7.0, 8.0],
    }
    assert moved.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(moved[name], torch.tensor(values).double())


def test_scales_outside_the_group_are_told():
    relu, gelu = FeedForwardGroup(2, Scale.positive), FeedForwardGroup(2)
    for group, scale, allowed in ((relu, 2.0, True), (relu, -2.0, False), (gelu, 2.0, False), (gelu, 1.0, True)):
        g = group.identity()
        g.parts["up"][1] = scale
        assert group.contains(g) == allowed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0,), "at least 1"), ((3, Scale.positive, None, 0), "at least 1"), ((3, Scale.signed, None, 2), "degree 2")],
)
def test_impossible_groups_are_refused(arguments: tuple[Any, ...], words: str):
    with pytest.raises(ValueError, match=words):
        FeedForwardGroup(*arguments)


@pytest.mark.parametrize(
    ("activation", "gated", "scale"),
    [("gelu", False, -1.0), ("gelu", True, 2.0), ("silu", False, 2.0), ("relu", False, -1.0), ("tanh", False, 2.0)],
)
def test_scales_that_the_group_lacks_change_the_function(activation: str, gated: bool, scale: float):
    """The counterpart: the groups are not larger. In gated blocks the branch that the activation reads is scaled."""
    block = make_block(activation, 4, 5, 1, gated=gated)
    scaled = torch.full((4,), scale, dtype=torch.float64)
    g = block.group.identity().having({"gate" if gated else "up": scaled})
    assert not block.group.contains(g)
    assert relative_difference(block.output(), block.output(block.group.act(g, block.weights))) > 1e-2


# name: activation, gated, bias, dimension for 4 units by hand
DIMENSIONS = {
    "gelu": ("gelu", False, True, 0),
    "tanh": ("tanh", False, True, 0),
    "relu": ("relu", False, True, 4),
    "relu2": ("relu2", False, False, 4),
    "swiglu": ("silu", True, False, 4),
    "geglu-bias": ("gelu", True, True, 4),
    "reglu": ("relu", True, True, 8),
    "reglu2": ("relu2", True, False, 8),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_dimension_is_what_the_function_does_not_see(name: str):
    """Nullity of the Jacobian of all outputs by all weights, with a clear gap."""
    activation, gated, bias, expected = DIMENSIONS[name]
    block = make_block(activation, 4, 3, 0, gated=gated, bias=bias)
    parts = block.weights.tensors()
    sizes = [t.numel() for t in parts.values()]
    hidden = torch.randn(2 * sum(sizes), 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def output(flat: Tensor) -> Tensor:
        pieces = zip(parts.items(), flat.split(sizes), strict=True)
        weights = FeedForwardWeights(**{n: piece.reshape(t.shape) for (n, t), piece in pieces})
        return feedforward.feed_forward(weights, ACTIVATIONS[activation], hidden).flatten()

    values = torch.linalg.svdvals(jacrev(output)(torch.cat([t.flatten() for t in parts.values()])))
    unseen = int((values < 1e-10 * values[0]).sum())
    assert unseen == expected == block.group.dimension
    assert values[len(values) - unseen - 1] > 1e-5 * values[0]


def test_groups_in_words():
    expected = {
        ("gelu", False): "S_3",
        ("relu", False): "(R_{>0})^3 ⋊ S_3",
        ("tanh", False): "({±1})^3 ⋊ S_3",
        ("silu", True): "(R*)^3 ⋊ S_3",
        ("relu", True): "(R* × R_{>0})^3 ⋊ S_3",
        ("unheard-of", False): "S_3",
    }
    for (activation, gated), words in expected.items():
        assert str(feedforward_group(3, activation, gated=gated)) == words
