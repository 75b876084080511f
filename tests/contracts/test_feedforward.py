"""The laws of `test_families` for feed-forward blocks, in every family and for every kind of activation."""

from __future__ import annotations

import pytest
import torch

import isobasin
from contracts.checks import (
    KINDS,
    assert_blocks_preserved,
    assert_feedforwards_preserved,
    assert_same_apart_from,
    assert_tensors_equal,
    at_scope,
    attention_names,
    blocks,
    feedforward_blocks,
    feedforward_distance,
    feedforward_names,
    kinds,
    models_at,
    tensors,
    thorough,
    weight_files,
)
from isobasin.alignment import Alignment, displaced
from isobasin.architectures.configuration import build
from isobasin.architectures.examples import EXAMPLES, tiny, variant
from isobasin.architectures.registry import Family, family
from isobasin.architectures.tiny import TinyModel
from isobasin.testing.assertions import assert_function_preserved


def states_feedforwards(model_type: str) -> bool:
    return family(model_type).feedforwards is not Family.feedforwards


def has_scales(model: TinyModel) -> bool:
    """Whether any unit may be scaled, or is an expert's."""
    stated = family(model.model_type).feedforwards(build(model.model_type, model.config))
    return any(block.group.scaled or block.group.experts for block in stated)


VARIANTS = (
    tiny("bert", "ff-relu", config={"hidden_act": "relu"}),
    tiny("bert", "ff-tanh", config={"hidden_act": "tanh"}),
    tiny("vit", "ff-relu2", config={"hidden_act": "relu2"}),
    tiny("gpt2", "ff-inner", config={"n_inner": 20, "activation_function": "relu"}),
    tiny("llama", "ff-biases", config={"mlp_bias": True}),
    tiny("llama", "ff-reglu", config={"hidden_act": "relu", "mlp_bias": True}),
    tiny("mistral", "ff-relu2", config={"hidden_act": "relu2"}),
    tiny("qwen2", "ff-tanh", config={"hidden_act": "tanh"}),
    tiny("modernbert", "ff-biases", config={"mlp_bias": True}),
    tiny("dinov3_vit", "ff-gated", config={"use_gated_mlp": True}),
    variant("deepseek_v2-groups"),
)
MODELS = (
    *(model for model in EXAMPLES if not model.variant and states_feedforwards(model.model_type)),
    tiny("opt", "no-bias", config={"enable_bias": False}),
)
# And one for every activation's scales.
SWEPT = (*KINDS, "opt", "gpt_oss", "bert-ff-tanh", "vit-ff-relu2", "llama-ff-reglu")
some_thorough = thorough([*MODELS, *VARIANTS], SWEPT)
# No variant above is tested at another scope.
AT_BLOCKS = [*at_scope(MODELS, "block"), *VARIANTS]


@models_at(AT_BLOCKS, "condition", 1.0, 1e3)
def test_scrambled_units_and_heads_compute_the_same_in_float64(model, condition, saved, scrambled):
    original, moved = saved(model), scrambled(model, "block", condition)
    assert_feedforwards_preserved(original, moved.path, 1e-9)
    assert_blocks_preserved(blocks(original), blocks(moved.path), 1e-9)
    assert_function_preserved(original, moved.path, model.allowed(condition))
    assert feedforward_distance(original, moved.path) > 0.1
    assert moved.verified.equal


@kinds(MODELS)
def test_scrambled_units_and_heads_compute_the_same_in_float32(model, saved, scrambled):
    original, moved = saved(model, dtype=torch.float32), scrambled(model, "block", 10.0, torch.float32)
    assert_feedforwards_preserved(original, moved.path, 1e-4)
    assert_function_preserved(original, moved.path, 1e-4)
    assert moved.verified.equal


@models_at(AT_BLOCKS, "dtype", torch.float32, torch.float64)
def test_align_brings_units_and_heads_back(model, dtype, saved, scrambled, tmp_path):
    """And the program's own verification accepts it, which is asked of one model for every kind."""
    original, out = saved(model, dtype=dtype), tmp_path / "aligned"
    moved = scrambled(model, "block", {torch.float64: 1e3, torch.float32: 10.0}[dtype], dtype).path
    found = isobasin.align(original, moved, out, scope="block", verify=str(model) in KINDS)
    assert found.verified is None or found.verified.equal
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    assert_tensors_equal(original, out, attention_names(original) | feedforward_names(original), tolerance)
    assert [layer.statistics.status for layer in found.feedforward] == ["exact"] * len(feedforward_blocks(original))
    random = Alignment.load(moved)
    for one, other in zip(random.feedforward, found.feedforward, strict=True):
        both, nothing = one.group.compose(other.element, one.element), one.group.identity()
        assert torch.equal(both.permutation, nothing.permutation)
        assert torch.equal(both.experts, nothing.experts)
    layers = dict.fromkeys(layer.layer for layer in found.feedforward)
    assert isobasin.equivalent(original, moved).feedforward == tuple(layers)


@some_thorough
def test_everything_else_stays_as_it_is(model, saved, tmp_path):
    original, scrambled = saved(model, dtype=torch.float32), tmp_path / "scrambled"
    moving = attention_names(original) | feedforward_names(original)
    isobasin.scramble(original, scrambled, seed=8, scope="block", verify=False)
    assert_same_apart_from(moving, original, scrambled)
    isobasin.align(original, scrambled, tmp_path / "aligned", scope="block", verify=False)
    assert_same_apart_from(moving, scrambled, tmp_path / "aligned")
    isobasin.align(original, scrambled, tmp_path / "attention", verify=False)
    assert_same_apart_from(attention_names(original), scrambled, tmp_path / "attention")


@thorough(m for m in MODELS if not has_scales(m))
def test_units_without_scales_move_without_rounding(model, saved, tmp_path):
    """A permutation of 16-bit weights is exact: the same numbers, elsewhere, and back to the bit."""
    original = saved(model, dtype=torch.bfloat16)
    found = isobasin.random_alignment(original, seed=2, scope="block")
    assert not any(layer.group.scaled for layer in found.feedforward)
    isobasin.apply(found, original, tmp_path / "there", verify=False)
    isobasin.apply(found.inverse(), tmp_path / "there", tmp_path / "back", verify=False)
    before, between, after = (tensors(folder) for folder in (original, tmp_path / "there", tmp_path / "back"))
    for name in feedforward_names(original):
        assert torch.equal(before[name], after[name])
        assert torch.equal(before[name].flatten().sort().values, between[name].flatten().sort().values)


@some_thorough
def test_an_alignment_with_feedforward_can_be_kept(model, saved, tmp_path):
    """Saved, loaded and applied it writes the same bits; the inverse undoes it; composing is applying in turn."""
    original, scrambled, aligned = saved(model), tmp_path / "scrambled", tmp_path / "aligned"
    moving = attention_names(original) | feedforward_names(original)
    isobasin.scramble(original, scrambled, seed=10, scope="block", verify=False)
    found = isobasin.align(original, scrambled, aligned, scope="block", verify=False)
    isobasin.apply(Alignment.load(aligned), scrambled, tmp_path / "again", verify=False)
    for path in weight_files(aligned):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    isobasin.apply(found.inverse(), aligned, tmp_path / "undone", verify=False)
    assert_tensors_equal(scrambled, tmp_path / "undone", moving, 1e-10)

    second = isobasin.random_alignment(original, seed=11, condition=20.0, scope="block")
    isobasin.apply(second, aligned, tmp_path / "in-turn", verify=False)
    isobasin.apply(second.compose(found), scrambled, tmp_path / "composed", verify=False)
    assert_tensors_equal(tmp_path / "in-turn", tmp_path / "composed", moving, 1e-10)
    assert feedforward_distance(tmp_path / "in-turn", aligned) > 0.1


@pytest.mark.parametrize("model", [m for m in (*MODELS, *VARIANTS) if str(m) in SWEPT], ids=str)
def test_a_second_sweep_changes_nothing(model, saved, tmp_path):
    """Of two unrelated models: heads and units share no tensor, so one sweep is where coordinate descent ends."""
    other = model.save(tmp_path / "other", seed=1)
    first = isobasin.align(saved(model), other, tmp_path / "once", scope="block", verify=False)
    again = isobasin.align(saved(model), tmp_path / "once", tmp_path / "twice", scope="block", verify=False)
    for layer in again.feedforward:
        assert displaced(layer.element.permutation) == 0
        for name in ("up", "gate"):
            part = layer.element.parts[name]
            torch.testing.assert_close(part, torch.ones_like(part), rtol=1e-6, atol=0)
    assert again.feedforward_distance()["before"] == pytest.approx(first.feedforward_distance()["after"], rel=1e-12)
    assert again.feedforward_distance()["after"] == pytest.approx(first.feedforward_distance()["after"], rel=1e-9)
    # Within heads there are local minima, and the second start is another one: in T5 it ends a little lower.
    assert again.distance()["after"] == pytest.approx(first.distance()["after"], rel=1e-3)
    # Attention is moved the same whether or not units are.
    alone = isobasin.align(saved(model), other, verify=False)
    assert alone.distance() == first.distance()
    assert alone.feedforward == ()
    assert_tensors_equal(tmp_path / "once", tmp_path / "twice", feedforward_names(other), 1e-6)
