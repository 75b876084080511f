"""The stated dimension, measured twice: as the rank of the action, and as what the function doesn't see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from isobasin.symmetries import attention
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.strategies import make_group, random_weights

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


def rank_and_gap(jacobian: Tensor) -> tuple[int, float]:
    """Numerical rank where the singular values fall furthest, and by what factor they fall there."""
    values = torch.linalg.svdvals(jacobian)
    values = values.clamp(min=values[0] * 1e-18)
    # What follows the last value counts as rounding level, so that full rank is a possible answer.
    padded = torch.cat([values, values[:1] * 1e-17])
    falls = padded[:-1] / padded[1:]
    return int(falls.argmax()) + 1, float(falls.max())


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
    start = attention.identity(group)
    parts = {
        "query_key.matrix": start.query_key.matrix,
        "query_key.planes": torch.view_as_real(start.query_key.planes),
        "value_output.matrix": start.value_output.matrix,
        "value_output.planes": torch.view_as_real(start.value_output.planes),
        **({"key_shift": start.key_shift} if group.key_shift else {}),
        **({"value_shift": start.value_shift} if group.value_shift else {}),
    }
    sizes = [p.numel() for p in parts.values()]

    def moved(flat: Tensor) -> Tensor:
        new = {n: piece.reshape(p.shape) for (n, p), piece in zip(parts.items(), flat.split(sizes), strict=True)}
        pairs = {
            pair: BilinearElement(new[f"{pair}.matrix"], torch.view_as_complex(new[f"{pair}.planes"].contiguous()))
            for pair in ("query_key", "value_output")
        }
        shifts = {n: new[n] for n in ("key_shift", "value_shift") if n in new}
        return flattened(attention.act(group, replace(start, **pairs, **shifts), weights))[0]

    flat = torch.cat([p.flatten() for p in parts.values()])
    rank, gap = rank_and_gap(jacrev(moved)(flat))
    assert flat.numel() == group.dimension == rank == expected
    assert gap > 1e6


def unseen(group: AttentionGroup, weights: AttentionWeights) -> tuple[int, float]:
    """Nullity of the Jacobian of all outputs by all weights, on several random inputs, and the gap after it."""
    flat, build = flattened(weights)
    generator = torch.Generator().manual_seed(0)
    width, tokens = weights.key.shape[-2], 5
    rows = 2 * flat.numel() // (tokens * width) + 2
    hidden = torch.randn(rows, tokens, width, generator=generator, dtype=torch.float64)
    planes = max(len(group.query_key.planes), len(group.value_output.planes))
    angles = torch.arange(tokens, dtype=torch.float64).unsqueeze(-1) * torch.tensor([1.0, 0.37])[:planes].double()
    jacobian = jacfwd(lambda w: attention.attend(build(w), group, hidden, angles).flatten())(flat)
    assert jacobian.shape[0] >= 2 * jacobian.shape[1]
    rank, gap = rank_and_gap(jacobian)
    return flat.numel() - rank, gap


@pytest.mark.parametrize("name", SETTINGS)
def test_directions_that_the_function_does_not_see(name):
    group, weights, expected = case(name)
    nullity, gap = unseen(group, weights)
    assert nullity == expected == group.dimension
    assert gap > 1e6


def test_value_biases_of_heads_wider_than_the_model_trade_with_each_other():
    """The one known freedom outside the group: without an output bias, `Σ v_j O_j^T = 0` has `g m - d` solutions.

    It needs more value features than the model is wide, and no family has that.
    """
    group = make_group(2, 1, 3, {"value": True})
    nullity, gap = unseen(group, random_weights(group, 4, {"value": True}, seed=0))
    assert nullity == group.dimension + (2 * 3 - 4)
    assert gap > 1e6
