"""Model types that are one architecture: equal tensors and equal configurations are one function."""

from __future__ import annotations

from typing import Any

import pytest

import isobasin
from isobasin.architectures.registry import families, kind
from isobasin.testing.assertions import assert_function_preserved
from isobasin.testing.tiny import tiny

KIN = [(entry.model_type, entry.computes) for entry in families() if entry.computes is not None]
# Where the one has a feature that the other lacks, it is off.
_OFF: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}


def pair(model_type: str, other: str) -> tuple[Any, Any]:
    """Two models with equal weights, of one type and of the other."""
    config = {**tiny(model_type).config, **_OFF.get(model_type, {})}
    one, same = tiny(model_type, config=config).build(), tiny(other, config=config).build(seed=1)
    same.load_state_dict(one.state_dict())
    return one, same


def test_kin_have_one_kind():
    assert dict(KIN) == {"mistral": "llama", "xlm-roberta": "roberta"}
    assert kind("mistral") == kind("llama") == "llama"
    assert kind("anything") == "anything"


@pytest.mark.parametrize(("model_type", "other"), KIN)
def test_kin_compute_the_same(model_type, other):
    assert_function_preserved(*pair(model_type, other))


@pytest.mark.parametrize(("model_type", "other"), KIN)
def test_kin_are_compared_as_one_architecture(model_type, other):
    one, same = pair(model_type, other)
    assert isobasin.equivalent(one, same).equivalent
    assert isobasin.verify(one, same).equal
    assert isobasin.compare(one, same).verdict == "same function"


def test_an_alignment_moves_a_model_of_its_kin():
    one, same = pair("mistral", "llama")
    move = isobasin.random_alignment(one, seed=3)
    moved = [move.apply(model).model for model in (one, same)]
    assert_function_preserved(*moved)
    assert_function_preserved(one, moved[1], 1e-6)


def test_a_window_is_another_function():
    windowed = tiny("mistral", config={**tiny("mistral").config, "sliding_window": 4}).build()
    other = tiny("llama").build(seed=1)
    other.load_state_dict(windowed.state_dict())
    found = isobasin.equivalent(windowed, other)
    assert not found.equivalent
    assert found.configuration == ("sliding_window",)
