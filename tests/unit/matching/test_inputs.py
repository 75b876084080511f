"""Distances weighted by the moments of a block's inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isobasin.matching import inputs
from isobasin.matching.attention import match
from isobasin.matching.feedforward import match_feedforward
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
from isobasin.symmetries.weights import AttentionWeights

_WIDTH, _FEATURES, _HEADS, _UNITS = 10, 4, 3, 7
_READERS = {"attention": ("query", "key", "value"), "feedforward": ("up", "gate")}


def _draw(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def _attention(seed: int, *, biased: bool = True) -> AttentionWeights:
    draw = _draw(seed)
    queried, shared = (_HEADS, 1, _WIDTH, _FEATURES), (_HEADS, _WIDTH, _FEATURES)
    found = AttentionWeights(draw(*queried), draw(*shared), draw(*shared), draw(*queried))
    if not biased:
        return found
    biases = draw(_HEADS, 1, _FEATURES), draw(_HEADS, _FEATURES), draw(_HEADS, _FEATURES), draw(_WIDTH)
    return replace(found, query_bias=biases[0], key_bias=biases[1], value_bias=biases[2], output_bias=biases[3])


def _group(*, rotary: bool, biased: bool) -> AttentionGroup:
    planes = ((0, 2), (1, 3)) if rotary else ()
    pairs = BilinearGroup(_FEATURES, planes), BilinearGroup(_FEATURES, ())
    return AttentionGroup(_HEADS, 1, *pairs, key_shift=biased and not rotary, value_shift=biased)


def _feedforward(seed: int, *, biased: bool = True) -> FeedForwardWeights:
    draw = _draw(seed)
    found = FeedForwardWeights(draw(_UNITS, _WIDTH), draw(_UNITS, _WIDTH), draw(_UNITS, _WIDTH))
    return replace(found, up_bias=draw(_UNITS), gate_bias=draw(_UNITS)) if biased else found


def _inputs(count: int = 400) -> Tensor:
    """Inputs of very different variances along their directions, far from zero in the mean."""
    draw = _draw(99)
    return draw(count, _WIDTH) @ (draw(_WIDTH, _WIDTH) * torch.logspace(0, -2, _WIDTH, dtype=torch.float64)) + draw(
        _WIDTH
    )


def _moment(x: Tensor) -> Tensor:
    rows = torch.nn.functional.pad(x, (0, 1), value=1.0)
    return rows.mT @ rows / len(rows)


def _moments(kind: str, x: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(_READERS[kind], _moment(x))


def _outputs(weights: AttentionWeights | FeedForwardWeights, name: str, x: Tensor) -> Tensor:
    parts = weights.tensors()
    matrix = parts[name].mT if isinstance(weights, FeedForwardWeights) else parts[name]
    bias = parts.get(f"{name}_bias")
    return x @ matrix if bias is None else x @ matrix + bias.unsqueeze(-2)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("make", [_attention, _feedforward])
def test_weighted_distances_are_errors_of_outputs(make, biased, monkeypatch):
    """Every reader's, with its bias, head by head; writers and their biases stay as they are."""
    monkeypatch.setattr(inputs, "_FLOOR", 0.0)
    a, b, x = make(0, biased=biased), make(1, biased=biased), _inputs()
    kind = "attention" if make is _attention else "feedforward"
    seen = [inputs.weighted(w, _moments(kind, x)) for w in (a, b)]
    for name in seen[0].tensors():
        role = name.removesuffix("_bias")
        one, other = (getattr(w, name) for w in seen)
        if role not in _READERS[kind]:
            assert torch.equal(one, getattr(a, name))
        elif role == name and getattr(a, name) is not None:
            difference = (one - other).square().sum(-1 if kind == "feedforward" else -2)
            bias = getattr(seen[0], f"{name}_bias")
            if bias is not None:
                difference = difference + (bias - getattr(seen[1], f"{name}_bias")).square()
            errors = (_outputs(a, name, x) - _outputs(b, name, x)).square().mean(-2)
            torch.testing.assert_close(difference, errors, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_a_planted_element_is_found(rotary, biased):
    group, a = _group(rotary=rotary, biased=biased), _attention(0, biased=biased)
    element = group.sample(torch.Generator().manual_seed(1), condition=10.0, shift=1.0)
    b = group.act(element, a)
    found = match(group, a, b, moments=_moments("attention", _inputs()))
    for name, tensor in a.tensors().items():
        # A free key bias is set by the keys' means, which rounding of the maps shifts a little more.
        torch.testing.assert_close(getattr(found.moved, name), tensor, rtol=1e-7, atol=1e-7)


def test_a_planted_order_of_units_is_found():
    group = FeedForwardGroup(_UNITS, Scale.signed, Scale.none)
    a = _feedforward(0)
    b = group.act(group.sample(torch.Generator().manual_seed(1), condition=10.0), a)
    found = match_feedforward(group, a, b, _moments("feedforward", _inputs()))
    for name, tensor in a.tensors().items():
        torch.testing.assert_close(getattr(found.moved, name), tensor, rtol=1e-8, atol=1e-8)


def _error(a: AttentionWeights, b: AttentionWeights, x: Tensor) -> float:
    """What the weighted match minimises: errors of queries, keys up to their mean, values; and of output weights."""
    found = 0.0
    for name in _READERS["attention"]:
        rest = _outputs(a, name, x) - _outputs(b, name, x)
        found += float((rest - rest.mean(-2, keepdim=True) if name == "key" else rest).square().mean(-2).sum())
    return found + float((a.output - b.output).square().sum())


def test_heads_match_what_they_compute_on_the_data_better_than_by_weights(monkeypatch):
    monkeypatch.setattr(inputs, "_FLOOR", 0.0)
    group, a, b, x = _group(rotary=False, biased=True), _attention(0), _attention(1), _inputs()
    by_weights = match(group, a, b)
    order = by_weights.element.outer, by_weights.element.inner
    by_data = match(group, a, b, order=order, moments=_moments("attention", x))
    assert _error(a, by_data.moved, x) < 0.9 * _error(a, by_weights.moved, x)


def test_inputs_that_hardly_vary_still_count():
    """Data along one direction leave no direction without weight."""
    x = torch.outer(_draw(0)(50), _draw(1)(_WIDTH))
    seen = inputs.weighted(_attention(0), _moments("attention", x))
    assert torch.linalg.matrix_rank(seen.query[0, 0]) == _FEATURES


@pytest.mark.parametrize("biased", [True, False])
def test_moments_of_what_a_normalisation_hides(biased):
    draw, x = _draw(7), _inputs()
    gain, bias = draw(_WIDTH), draw(_WIDTH) if biased else None
    moment = _moment(x * gain if bias is None else x * gain + bias)
    torch.testing.assert_close(inputs.folded(moment, gain, bias), _moment(x), rtol=1e-9, atol=1e-9)
