"""16-bit checkpoints: rounding is predicted, maps are capped, and nothing is changed silently."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.errors import IsobasinError, VerificationError
from isobasin.matching import circuits
from isobasin.model import open_model
from isobasin.testing.assertions import assert_function_preserved

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
MODELS = pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "qwen2"])


def read(folder: Path):
    with open_model(folder) as model:
        return [(block.group, block.read(model.stored(block))) for block in model.specification.attention]


@HALVES
@MODELS
def test_the_effect_of_rounding_is_predicted(model_type, dtype, tmp_path):
    """Layer by layer within a factor of 3 of what writing the file did to the circuits."""
    original = tiny(model_type).save(tmp_path / "original", dtype=torch.float32)
    other = tiny(model_type).save(tmp_path / "other", seed=1, dtype=torch.float32)
    found = isobasin.align(original, other, tmp_path / "out", dtype=dtype)
    assert found.verified.equal
    for layer, (group, before), (_, written) in zip(found.layers, read(other), read(tmp_path / "out"), strict=True):
        moved = group.act(layer.element, before)
        measured = float(circuits.circuit_error(group, moved, written))
        assert measured / 3 < layer.statistics.rounding < measured * 3
        assert layer.statistics.rounding > 1e-4


@HALVES
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("limit", [None, 20.0])
def test_maps_are_capped_and_that_is_reported(model_type, dtype, limit, tmp_path):
    """The way back from a scramble at condition 1e3 needs maps that a 16-bit file can't hold."""
    original = tiny(model_type).save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", seed=3, condition=1e3, verify=False)
    found = isobasin.align(original, tmp_path / "scrambled", tmp_path / "out", dtype=dtype, max_condition=limit)
    assert found.verified.equal
    for layer in found.layers:
        assert layer.statistics.status == "capped"
        sizes = torch.linalg.svdvals(layer.element.parts["value_output.matrix"])
        assert (sizes[:, 0] <= sizes[:, -1] * (limit or 100.0) * (1 + 1e-9)).all()
        assert 0 < layer.statistics.distance_after < layer.statistics.distance_before
    assert_function_preserved(tmp_path / "scrambled", tmp_path / "out", found.verified.tolerance)


@HALVES
def test_without_a_cap_the_scrambles_inverse_is_found(dtype, tmp_path):
    original = tiny("gpt2").save(tmp_path / "original")
    isobasin.scramble(original, tmp_path / "scrambled", seed=3, condition=1e3, verify=False)
    found = isobasin.align(original, tmp_path / "scrambled", tmp_path / "out", dtype=dtype, max_condition=1e6)
    assert [layer.statistics.status for layer in found.layers] == ["exact", "exact"]
    eps = torch.finfo(dtype).eps
    for (_, one), (_, other) in zip(read(original), read(tmp_path / "out"), strict=True):
        for name, tensor in one.tensors().items():
            assert float((tensor - getattr(other, name)).norm() / tensor.norm()) < eps, name


ACCEPTED = [(torch.float16, 10.0), (torch.bfloat16, 10.0)]
REFUSED = [(torch.float16, 1e3), (torch.float16, 1e5), (torch.bfloat16, 1e3), (torch.bfloat16, 1e5)]


@pytest.mark.parametrize(("dtype", "condition"), ACCEPTED, ids=str)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_16_bit_result_differs_by_no_more_than_is_reported(model_type, dtype, condition, tmp_path):
    original = tiny(model_type).save(tmp_path / "original", dtype=torch.float32)
    moved = isobasin.scramble(original, tmp_path / "out", seed=4, condition=condition, dtype=dtype)
    assert moved.verified.max_rel <= moved.verified.tolerance <= 0.1
    difference = assert_function_preserved(original, tmp_path / "out", 2 * moved.verified.tolerance)
    assert difference > torch.finfo(dtype).eps / 10


@pytest.mark.parametrize(("dtype", "condition"), REFUSED, ids=str)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_an_ill_conditioned_16_bit_result_is_refused(model_type, dtype, condition, tmp_path):
    """Never a silent change: the error says what to do, and nothing is written."""
    original = tiny(model_type).save(tmp_path / "original", dtype=torch.float32)
    with pytest.raises(VerificationError, match="lower --condition"):
        isobasin.scramble(original, tmp_path / "out", seed=4, condition=condition, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


@HALVES
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_model_scrambled_at_1e3_and_stored_in_16_bits(model_type, dtype, tmp_path):
    """What rounding lost can't come back, but the move itself is capped and keeps the function of its input."""
    original = tiny(model_type).save(tmp_path / "original", dtype=torch.float32)
    isobasin.scramble(original, tmp_path / "scrambled", seed=5, condition=1e3, dtype=dtype, verify=False)
    found = isobasin.align(original, tmp_path / "scrambled", tmp_path / "out")
    assert found.verified.equal
    assert [layer.statistics.status for layer in found.layers] == ["capped", "capped"]
    assert found.distance()["after"] < 0.5 * found.distance()["before"]
    assert_function_preserved(tmp_path / "scrambled", tmp_path / "out", 2 * found.verified.tolerance)


@pytest.mark.parametrize("limit", [0.5, 0.0, -1.0, float("nan")])
def test_a_limit_below_one_is_refused(limit, tmp_path):
    original = tiny("gpt2").save(tmp_path / "original")
    with pytest.raises(IsobasinError, match="at least 1"):
        isobasin.align(original, original, max_condition=limit)


def test_a_copy_that_was_stored_in_an_ill_conditioned_gauge_is_recognised(tmp_path):
    """Its circuits carry the rounding of that gauge, which its weights of now don't show."""
    original = tiny("llama").save(tmp_path / "original", dtype=torch.float32)
    isobasin.scramble(original, tmp_path / "scrambled", seed=5, condition=1e3, verify=False)
    isobasin.align(original, tmp_path / "scrambled", tmp_path / "restored", verify=False)
    found = isobasin.equivalent(original, tmp_path / "restored")
    assert found.equivalent
    assert max(layer.circuit_error for layer in found.layers) > 1e-7


def test_a_model_that_differs_a_little_is_not_equivalent(tmp_path):
    original = tiny("llama").save(tmp_path / "original", dtype=torch.float32)
    other = tiny("llama").save(tmp_path / "other", seed=1, dtype=torch.float32)
    isobasin.interpolate(original, other, 1e-3, tmp_path / "near")
    assert not any(layer.equivalent for layer in isobasin.equivalent(original, tmp_path / "near").layers)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_biases_that_are_zero_are_so_up_to_the_rounding_of_what_adds_up_to_them(family, tmp_path):
    original = tiny(family).save(tmp_path / "original", dtype=torch.float32)
    weights = load_file(original / "model.safetensors")
    zeros = {name: torch.zeros_like(x) if name.endswith("bias") else x for name, x in weights.items()}
    save_file(zeros, original / "model.safetensors", {"format": "pt"})
    isobasin.scramble(original, tmp_path / "scrambled", seed=5, condition=1e2)
    assert isobasin.equivalent(original, tmp_path / "scrambled").equivalent
    scrambled = load_file(tmp_path / "scrambled" / "model.safetensors")
    name = next(name for name in scrambled if re.search(r"(attn\.c_proj|out_proj)\.bias$", name))
    scrambled[name] += 1e-4
    save_file(scrambled, tmp_path / "scrambled" / "model.safetensors", {"format": "pt"})
    assert [layer.equivalent for layer in isobasin.equivalent(original, tmp_path / "scrambled").layers].count(
        False
    ) == 1


@HALVES
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("scope", [None, "block", "model"])
def test_a_copy_of_16_bits_is_its_wide_original(scope, model_type, dtype, tmp_path):
    """In either order, and with weights so small that float16 keeps few of their digits."""
    original = tiny(model_type).save(tmp_path / "original", 1, dtype=torch.float32)
    table = "model.embed_tokens.weight" if model_type == "llama" else "transformer.wpe.weight"
    tensors = load_file(original / "model.safetensors")
    up = next(name for name in tensors if name.endswith(("up_proj.weight", "c_fc.weight")))
    tensors |= {name: 1e-3 * tensors[name] for name in (table, up)}
    save_file(tensors, original / "model.safetensors", {"format": "pt"})
    copy = tmp_path / "copy"
    if scope is None:
        shutil.copytree(original, copy)
        save_file({name: x.to(dtype) for name, x in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    else:
        isobasin.scramble(original, copy, scope=scope, dtype=dtype, verify=False)
    for one, other in ((original, copy), (copy, original)):
        assert isobasin.equivalent(one, other).equivalent
        assert isobasin.diagnose(one, other).sound
    assert isobasin.compare(original, copy).verdict == "same function"
    if scope is None:
        assert isobasin.diagnose(original, copy).judgement == "rounded"
    stored = load_file(copy / "model.safetensors")
    stored[table][3] *= 1.1
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    assert not isobasin.equivalent(original, copy).equivalent


@pytest.mark.parametrize("name", ["bert", "beit"])
def test_what_scores_shift_by_is_as_large_as_keys_whatever_values_are(name: str, tmp_path: Path):
    """Softmax cancels it in exact numbers alone: beside a shift of the size of large values scores are lost."""
    plain = tiny(name).save(tmp_path / "plain", dtype=torch.float32)
    large = tmp_path / "large"
    shutil.copytree(plain, large)
    stored = load_file(large / "model.safetensors")
    for tensor_name, x in stored.items():
        if ".value." in tensor_name:
            x *= 1e9
    save_file(stored, large / "model.safetensors", {"format": "pt"})
    moves = [isobasin.random_alignment(model).layers for model in (plain, large)]
    for one, other in zip(*moves, strict=True):
        ours, theirs = one.element.tensors(), other.element.tensors()
        for part in ("key_shift", "table_shift"):
            if part in ours:
                torch.testing.assert_close(ours[part], theirs[part])
        assert (theirs["value_shift"].norm() > 1e8 * ours["value_shift"].norm()).item()
