"""One suite that holds every family and variant to the same laws."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

import isobasin
from contracts.checks import (
    KINDS,
    THOROUGH,
    assert_blocks_preserved,
    assert_recovered,
    assert_same_apart_from_attention,
    assert_undone,
    at_scope,
    blocks,
    kinds,
    models_at,
    mostly_long,
    recover,
    tensors,
    thorough,
    weight_files,
    worst_distance,
)
from isobasin.alignment import Alignment
from isobasin.architectures.examples import EXAMPLES, tiny, variant
from isobasin.errors import ArchitectureError
from isobasin.model import open_model
from isobasin.testing.assertions import assert_function_preserved
from isobasin.verification import verify_models

USUAL = [model for model in EXAMPLES if not model.variant]
# The variants of a family differ in their attention.
MODELS = [*at_scope(USUAL, "attention"), *(model for model in EXAMPLES if model.variant)]


@models_at(MODELS, "condition", 1.0, 10.0, 1e3)
def test_a_scrambled_float64_model_computes_the_same(model, condition, saved, scrambled):
    """By the plain blocks, by transformers' outputs and hidden states, and by the program's own verification."""
    original, moved = saved(model), scrambled(model, "attention", condition)
    assert_blocks_preserved(blocks(original), blocks(moved.path), 1e-9)
    assert_function_preserved(original, moved.path, model.allowed(condition))
    assert worst_distance(blocks(original), blocks(moved.path)) > 0.1
    assert moved.verified.equal
    assert moved.verified.max_rel <= model.allowed(condition)


@thorough(USUAL, (*KINDS, "gpt2", "vit", "clip", "whisper"))
def test_a_scrambled_base_model_computes_the_same(model, saved, tmp_path):
    original = saved(model, base=True)
    isobasin.scramble(original, tmp_path / "out", seed=2, condition=1e3, verify=False)
    assert_blocks_preserved(blocks(original), blocks(tmp_path / "out"), 1e-9)
    assert_function_preserved(original, tmp_path / "out", model.allowed(1e3))


@pytest.mark.parametrize("head", ["CLIPForImageClassification", "SiglipForImageClassification"])
def test_a_classifier_that_has_one_of_two_towers(head, saved, tmp_path):
    model_type = head.removesuffix("ForImageClassification").lower()
    original = tiny(model_type, head=head).save(tmp_path / "a")
    with open_model(original) as model:
        assert {block.stack for block in (*model.specification.attention, *model.feedforwards())} == {"vision tower"}
    found = isobasin.scramble(original, tmp_path / "out", scope="block", condition=1e3)
    assert found.verified.equal
    assert_function_preserved(original, tmp_path / "out", 1e-8)
    assert isobasin.equivalent(original, tmp_path / "out").equivalent
    with pytest.raises(ArchitectureError, match="they must be equal"):
        isobasin.align(saved(tiny(model_type)), original)


@pytest.mark.parametrize("config", [{}, {"use_weighted_layer_sum": True}], ids=["last", "weighted"])
def test_a_classifier_of_sound_has_an_encoder_alone(config, saved, tmp_path):
    original = tiny("whisper", "classifier", head="WhisperForAudioClassification", config=config).save(tmp_path / "a")
    with open_model(original) as model:
        assert {block.stack for block in (*model.specification.attention, *model.feedforwards())} == {"encoder"}
    found = isobasin.scramble(original, tmp_path / "out", scope="block", condition=1e3)
    assert found.verified.equal
    assert_function_preserved(original, tmp_path / "out", 1e-8)
    assert isobasin.equivalent(original, tmp_path / "out").equivalent


@kinds(USUAL)
def test_a_scrambled_float32_model_computes_the_same(model, saved, scrambled):
    original, moved = saved(model, dtype=torch.float32), scrambled(model, "attention", 10.0, torch.float32)
    assert_blocks_preserved(blocks(original), blocks(moved.path), 1e-4)
    assert_function_preserved(original, moved.path, 1e-4)
    assert moved.verified.equal


@pytest.mark.parametrize("model_type", ["albert", "clip", "gemma3", "bart", "whisper", "t5", "swin"])
def test_the_programs_own_verification_reaches_every_block(model_type, saved, tmp_path):
    """A wrong value projection is noticed in whichever stack it is: in the last block of each."""
    original = saved(tiny(model_type))
    with open_model(original) as model:
        last = {block.stack: block for block in model.specification.attention}
    for block in last.values():
        wrong = tmp_path / str(block.layer)
        shutil.copytree(original, wrong)
        stored = tensors(original)
        stored[block.value.weight] = stored[block.value.weight].flip(0)
        save_file(stored, wrong / "model.safetensors", {"format": "pt"})
        with open_model(original) as one, open_model(wrong) as other:
            assert verify_models(one, other).max_rel > 1e-3


@models_at(MODELS, "condition", 10.0, 1e3)
def test_align_brings_float64_weights_back(model, condition, saved, scrambled, tmp_path):
    found = assert_undone(saved(model), scrambled(model, "attention", condition).path, tmp_path / "aligned", 1e-8)
    assert all(layer.statistics.status == "exact" for layer in found.layers)


@kinds(USUAL)
def test_align_brings_float32_weights_back(model, saved, scrambled, tmp_path):
    moved, aligned = scrambled(model, "attention", 10.0, torch.float32).path, tmp_path / "aligned"
    assert_undone(saved(model, dtype=torch.float32), moved, aligned, 1e-4)
    assert_function_preserved(moved, aligned, 1e-4)


@kinds(USUAL)
@pytest.mark.parametrize("seed", [10, 11])
def test_heads_are_in_the_right_order_every_time(model, seed, saved, tmp_path):
    recover(saved(model), tmp_path, seed=seed, condition=100.0, tolerance=1e-8)


WITHOUT_ROTATION = ("vit", "deit", "bert", "roberta", "distilbert", "gpt2", "opt")


@pytest.mark.parametrize("model_type", WITHOUT_ROTATION)
def test_the_published_method_fails_where_ours_recovers(model_type, saved, tmp_path):
    """At condition 1e3 gradient descent from the orthogonal start doesn't come back; the function stays the same."""
    original = saved(tiny(model_type))
    isobasin.scramble(original, tmp_path / "scrambled", seed=7, condition=1e3, verify=False)
    remaining: dict[str, float] = {}
    for method in ("paper", "gauss-newton"):
        out = tmp_path / method
        found = isobasin.align(original, tmp_path / "scrambled", out, method=method, verify=False)
        distance = found.distance()
        size = sum(float(t.square().sum()) for _, w in blocks(original) for t in w.tensors().values()) ** 0.5
        remaining[method] = distance["after"] / size
        assert_blocks_preserved(blocks(tmp_path / "scrambled"), blocks(out))
    assert remaining["paper"] > 1e-2
    assert remaining["gauss-newton"] < 1e-8


@kinds(USUAL)
def test_everything_but_attention_stays_as_it_is(model, saved, tmp_path):
    original = tmp_path / "original"
    model.save(original, dtype=torch.float32)
    (original / "tokenizer.json").write_text('{"made": "up"}\n')
    (original / "notes").mkdir()
    (original / "notes" / "README.md").write_bytes(b"\x00\xff kept as it is\n")
    isobasin.scramble(original, tmp_path / "scrambled", seed=8, verify=False)
    assert_same_apart_from_attention(original, tmp_path / "scrambled")
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    isobasin.align(original, tmp_path / "scrambled", tmp_path / "aligned", verify=False)
    assert_same_apart_from_attention(tmp_path / "scrambled", tmp_path / "aligned")
    assert before == {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "vit"])
def test_shards_and_mixed_types_stay_as_they_are(model_type, tmp_path):
    original = tmp_path / "original"
    made = tiny(model_type).build(dtype=torch.float32)
    for parameter in list(made.parameters())[::2]:
        parameter.data = parameter.data.to(torch.float64)
    made.save_pretrained(original, max_shard_size="20KB")
    assert len(weight_files(original)) > 1
    assert {t.dtype for t in tensors(original).values()} == {torch.float32, torch.float64}
    isobasin.scramble(original, tmp_path / "scrambled", seed=9, verify=False)
    assert_same_apart_from_attention(original, tmp_path / "scrambled")
    isobasin.align(original, tmp_path / "scrambled", tmp_path / "aligned", verify=False)
    assert_same_apart_from_attention(original, tmp_path / "aligned")
    assert_recovered(original, tmp_path / "aligned", 1e-4)


# And tables, LayerNorm of queries and keys, and a shared rotary key with biases.
KEPT = (*KINDS, "t5-gated", "beit-shared", "cohere-qk-norm", "stablelm-qk-norm-biases", "deepseek_v3-biases")


@mostly_long([m for m in MODELS if str(m) in KEPT or (m.variant and m.model_type in THOROUGH)], KEPT)
def test_an_alignment_is_a_group_element_that_can_be_kept(model, saved, tmp_path):
    """Saved, loaded and applied it writes the same bits; the inverse undoes it; composing is applying in turn.

    Of usual models `test_feedforward` says it with units beside the heads.
    """
    original, moved, aligned = saved(model), tmp_path / "scrambled", tmp_path / "aligned"
    isobasin.scramble(original, moved, seed=10, verify=False)
    found = isobasin.align(original, moved, aligned, verify=False)
    found.save(tmp_path / "kept.safetensors")
    for number, source in enumerate((tmp_path / "kept.safetensors", aligned)):
        isobasin.apply(Alignment.load(source), moved, tmp_path / f"again{number}", verify=False)
        for path in weight_files(aligned):
            assert path.read_bytes() == (tmp_path / f"again{number}" / path.name).read_bytes()

    isobasin.apply(found.inverse(), aligned, tmp_path / "undone", verify=False)
    assert_recovered(moved, tmp_path / "undone", 1e-10)

    second = isobasin.random_alignment(original, seed=11, condition=20.0)
    isobasin.apply(second, aligned, tmp_path / "in-turn", verify=False)
    isobasin.apply(second.compose(found), moved, tmp_path / "composed", verify=False)
    assert_recovered(tmp_path / "in-turn", tmp_path / "composed", 1e-10)
    assert worst_distance(blocks(tmp_path / "in-turn"), blocks(aligned)) > 0.1


def test_reference_with_a_head_and_model_without(saved, tmp_path):
    """Names with and without the head's prefix mean the same blocks."""
    model = tiny("llama")
    model.build().base_model.save_pretrained(tmp_path / "base")
    isobasin.scramble(tmp_path / "base", tmp_path / "scrambled", seed=12, verify=False)
    isobasin.align(saved(model), tmp_path / "scrambled", tmp_path / "aligned", verify=False)
    assert_recovered(tmp_path / "base", tmp_path / "aligned", 1e-8)


@pytest.mark.parametrize("model_type", ["qwen3", "olmo2"])
def test_equal_circuits_are_no_equal_functions_where_queries_are_normalised(model_type, saved, tmp_path):
    """Q and K in another basis have the same circuits; their norms, and so the scores, are others."""
    original = saved(tiny(model_type))
    isobasin.scramble(original, tmp_path / "same", seed=13, verify=False)
    assert isobasin.equivalent(original, tmp_path / "same").equivalent
    shutil.copytree(original, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    stored = tensors(tmp_path / "other")
    for name, factor in (("q_proj", 2.0), ("k_proj", 0.5)):
        weight = stored[f"model.layers.0.self_attn.{name}.weight"]
        weight[0], weight[4] = weight[0] * factor, weight[4] * factor  # one plane of the first head
        if name == "q_proj":
            weight[8], weight[12] = weight[8] * factor, weight[12] * factor  # and of the other one with that key
    save_file(stored, file, {"format": "pt"})
    assert not isobasin.verify(original, tmp_path / "other").equal
    assert not isobasin.equivalent(original, tmp_path / "other").equivalent


def test_a_changed_sink_is_no_equal_function(saved, tmp_path):
    original = saved(tiny("gpt_oss"))
    isobasin.scramble(original, tmp_path / "same", seed=13, verify=False)
    assert isobasin.equivalent(original, tmp_path / "same").equivalent
    shutil.copytree(original, tmp_path / "other")
    stored = tensors(tmp_path / "other")
    stored["model.layers.1.self_attn.sinks"][2] += 0.1
    save_file(stored, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    assert not isobasin.equivalent(original, tmp_path / "other").equivalent


@pytest.mark.parametrize(("name", "offset"), [("qwen3", 0), ("olmo2", 0), ("gemma3_text", 1), ("cohere-qk-norm", 0)])
def test_columns_may_change_their_signs_with_their_gains(name, offset, saved, tmp_path):
    """Negated by hand: features of queries and of keys, whole heads under LayerNorm; stored gains may lack a 1."""
    model = variant(name)
    original, copy = saved(model), tmp_path / "copy"
    shutil.copytree(original, copy)
    stored = tensors(copy)
    for weight, gain in ((f"{x}_proj.weight", f"{x}_norm.weight") for x in "qk"):
        for module in {n.removesuffix(weight) for n in stored if n.endswith(weight)}:
            columns, gains = stored[module + weight], stored[module + gain]
            flipped = [1] if gains.ndim > 1 else [1, 2, 7] if gain == "q_norm.weight" else [0, 1]
            columns.view(-1, *gains.shape, columns.shape[-1])[:, flipped] *= -1
            gains[flipped] = -gains[flipped] - 2 * offset
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    assert worst_distance(blocks(original), blocks(copy)) > 0.1
    assert_function_preserved(original, copy, model.allowed(1))
    assert isobasin.equivalent(original, copy).equivalent
    prints = [isobasin.fingerprint(folder).tensors for folder in (original, copy)]
    torch.testing.assert_close(*prints)
    isobasin.align(original, copy, tmp_path / "aligned", verify=False)
    assert worst_distance(blocks(original), blocks(tmp_path / "aligned")) < 1e-12
    canonical = tmp_path / "one", tmp_path / "other"
    for folder, out in zip((original, copy), canonical, strict=True):
        isobasin.canonicalize(folder, out, verify=False)
    assert worst_distance(*map(blocks, canonical)) < 1e-12
