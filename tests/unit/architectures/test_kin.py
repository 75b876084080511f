"""Model types that are one architecture: equal tensors and equal configurations are one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.architectures.registry import families, kind
from isobasin.errors import ArchitectureError, TensorError
from isobasin.testing.assertions import assert_function_preserved

KIN = [(entry.model_type, entry.computes) for entry in families() if entry.computes is not None]
# Where the one has a feature that the other lacks, it is off.
_OFF: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}


def pair(model_type: str, other: str) -> tuple[Any, Any]:
    """Two models with equal weights, of one type and of the other; biases that the other lacks are 0."""
    config = {**tiny(model_type).config, **_OFF.get(model_type, {})}
    one, same = tiny(model_type, config=config).build(), tiny(other, config=config).build(seed=1)
    extra = same.load_state_dict(one.state_dict(), strict=False).unexpected_keys
    for name in extra:
        one.get_parameter(name).data.zero_()
    return one, same


def without_biases(model: Any, folder: Path) -> Path:
    """A file without the model's biases, which transformers takes for 0."""
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    left = {name: x for name, x in stored.items() if not name.endswith("_proj.bias")}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_kin_have_one_kind():
    assert dict(KIN) == {"mistral": "llama", "qwen2": "llama", "xlm-roberta": "roberta"}
    assert kind("mistral") == kind("llama") == "llama"
    assert kind("anything") == "anything"


@pytest.mark.parametrize(("model_type", "other"), KIN)
def test_kin_compute_the_same(model_type, other):
    assert_function_preserved(*pair(model_type, other))


@pytest.mark.parametrize(("model_type", "other"), KIN)
def test_kin_are_compared_as_one_architecture(model_type, other, tmp_path):
    one, same = pair(model_type, other)
    if model_type == "qwen2":
        one = without_biases(one, tmp_path)
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


def test_biases_are_told_by_the_tensors(tmp_path):
    biased, llama = tiny("qwen2").build(), tiny("llama").build()
    with pytest.raises(ArchitectureError, match="biases on nothing, model has biases on query, key, value"):
        isobasin.align(llama, biased)
    folder = without_biases(biased, tmp_path / "a")
    stored = load_file(folder / "model.safetensors")
    bias = {"model.layers.1.self_attn.q_proj.bias": stored["model.layers.1.self_attn.q_proj.weight"][:, 0].contiguous()}
    save_file({**stored, **bias}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TensorError, match="unexpected in an attention module"):
        isobasin.symmetry(folder)
