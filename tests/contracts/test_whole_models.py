"""The laws of `test_families` for whole models: residual stream, normalisations, feed-forward units and heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import isobasin
from contracts.checks import KINDS, models_at, tensors, thorough
from isobasin.alignment import Alignment
from isobasin.architectures.examples import EXAMPLES, tiny, variant
from isobasin.architectures.registry import family
from isobasin.errors import AlignmentError, ArchitectureError, TensorError
from isobasin.model import open_model
from isobasin.symmetries.stream import Basis
from isobasin.testing.assertions import assert_function_preserved

UNTIED = {"tie_word_embeddings": False}
ENCODERS = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
VARIANTS = (
    tiny("gpt2", "untied", config=UNTIED),
    tiny("llama", "tied", config={"tie_word_embeddings": True}),
    tiny("llama", "biases", config={"mlp_bias": True, "attention_bias": True}),
    # Classifiers of tokens read the stream, those of sequences a pooler.
    *(tiny(model_type, "tokens", head=f"{name}ForTokenClassification") for model_type, name in ENCODERS.items()),
    tiny("bert", "sequences", head="BertForSequenceClassification"),
    tiny("distilbert", "sequences", head="DistilBertForSequenceClassification"),
    tiny("opt", "after-the-sum", config={"do_layer_norm_before": False}),
    tiny("gpt_neox", "tied", config={"tie_word_embeddings": True}),
    tiny("starcoder2", "untied", config=UNTIED),
    tiny("cohere", "untied", config=UNTIED),
    tiny("cohere", "qk-norm", config={"use_qk_norm": True}),
    tiny("stablelm", "qk-norm", config={"qk_layernorm": True, "use_qkv_bias": True}),
    tiny("stablelm", "parallel", config={"use_parallel_residual": True}),
    tiny("falcon", "sequential", config={**UNTIED, "parallel_attn": False, "bias": True}),
    tiny("falcon", "two-norms", config={"new_decoder_architecture": True, "num_kv_heads": 2}),
    tiny("olmo", "tied", config={"tie_word_embeddings": True}),
    tiny("electra", "wide", config={"embedding_size": 32}),
    tiny("roformer", "narrow", config={"embedding_size": 16}),
    tiny(
        "modernbert",
        "tokens",
        head="ModernBertForTokenClassification",
        config={"norm_bias": True, "classifier_bias": True},
    ),
    tiny("beit", "unscaled", config={"use_mean_pooling": False, "layer_scale_init_value": 0.0}),
    tiny("falcon", "one-norm", config={**UNTIED, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
)
MODELS = tuple(m for m in EXAMPLES if not m.variant and family(m.model_type).stream is not None)
CONDITION = {torch.float64: 100.0, torch.float32: 4.0}
# One for every kind of group, basis and place of a normalisation: the others' moves compose in the same parts.
some_thorough = thorough(
    [*MODELS, *VARIANTS], (*KINDS, "vit", "gpt2-untied", "llama-tied", "gpt_neox", "olmo2", "bloom", "qwen2_moe")
)


def stream_of(folder: Path, **options: bool):
    with open_model(folder) as opened:
        return opened.stream(**options)


def gap(a: Path, b: Path) -> float:
    """The largest relative difference of any stored tensor."""
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max() / one[n].abs().max().clamp(min=1e-9)) for n in one)


@models_at([*MODELS, *VARIANTS], "condition", 1.0, 100.0)
def test_a_scrambled_model_computes_the_same(model, condition, saved, scrambled):
    original, moved = saved(model), scrambled(model, "model", condition)
    assert_function_preserved(original, moved.path, 10 * model.allowed(condition), hidden=False)
    assert gap(original, moved.path) > 0.1
    assert moved.verified.equal


@models_at([*MODELS, *VARIANTS], "dtype", torch.float32, torch.float64)
def test_align_brings_a_whole_model_back(model, dtype, saved, scrambled, tmp_path):
    original, out = saved(model, dtype=dtype), tmp_path / "aligned"
    moved = scrambled(model, "model", CONDITION[dtype], dtype)
    assert moved.verified.equal
    # What LayerNorm subtracts is no part of the stream, so that tensors along it may differ by it; nothing else may.
    whole = stream_of(original).group.basis is not Basis.centred
    found = isobasin.align(original, moved.path, out, scope="model", verify=not whole or str(model) in KINDS)
    assert found.verified is None or found.verified.equal
    statistics = found.stream.statistics
    assert statistics.distance_after < (1e-7 if dtype == torch.float64 else 1e-4) * statistics.distance_before
    if whole:
        assert gap(original, out) < (1e-6 if dtype == torch.float64 else 1e-3)


@models_at([*MODELS, *VARIANTS], "dtype", torch.float32, torch.float64)
def test_a_scrambled_model_is_recognised(model, dtype, saved, scrambled):
    original = saved(model, dtype=dtype)
    found = isobasin.equivalent(
        original, scrambled(model, "model", 100.0 if dtype == torch.float64 else 4.0, dtype).path
    )
    assert found.equivalent, (found.other_tensors, found.layers)
    assert found.stream == str(stream_of(original).group)


@some_thorough
def test_moves_compose_and_are_taken_back(model, saved, tmp_path):
    original = saved(model)
    first = isobasin.random_alignment(original, seed=2, condition=4.0, scope="model")
    first.apply(original, tmp_path / "first", verify=False)
    second = isobasin.random_alignment(tmp_path / "first", seed=3, condition=4.0, scope="model")
    second.apply(tmp_path / "first", tmp_path / "second", verify=False)
    second.compose(first).apply(original, tmp_path / "both", verify=False)
    assert gap(tmp_path / "second", tmp_path / "both") < 1e-9
    first.inverse().apply(tmp_path / "first", tmp_path / "back", verify=False)
    assert gap(original, tmp_path / "back") < 1e-9


@some_thorough
def test_the_file_says_the_same(model, saved, tmp_path):
    original = saved(model)
    found = isobasin.random_alignment(original, seed=4, scope="model")
    found.save(tmp_path / "move.safetensors")
    loaded = Alignment.load(tmp_path / "move.safetensors")
    assert loaded.stream.group == found.stream.group
    for name, part in found.stream.element.tensors().items():
        assert torch.equal(part, loaded.stream.element.tensors()[name])
    loaded.apply(original, tmp_path / "loaded", verify=False)
    found.apply(original, tmp_path / "found", verify=False)
    assert gap(tmp_path / "loaded", tmp_path / "found") < 1e-14


@pytest.mark.parametrize(
    ("model_type", "options", "basis"),
    [
        ("gpt2", {}, Basis.permutation),
        ("gpt2", UNTIED, Basis.centred),
        ("llama", UNTIED, Basis.orthogonal),
        ("llama", {"tie_word_embeddings": True}, Basis.signed),
        ("bert", {}, Basis.permutation),
        ("vit", {}, Basis.centred),
        ("gemma", {}, Basis.signed),
        ("gemma", UNTIED, Basis.orthogonal),
        # What normalises a block's output holds the coordinates, as does what normalises embeddings.
        ("gemma2", UNTIED, Basis.signed),
        ("olmo2", UNTIED, Basis.signed),
        ("bloom", UNTIED, Basis.permutation),
        ("modernbert", UNTIED, Basis.permutation),
        # Without gains nothing does, tied or not; factors of a block's output are folded.
        ("olmo", {"tie_word_embeddings": True}, Basis.centred),
        ("dinov2", {}, Basis.centred),
    ],
)
def test_the_group_is_the_one_that_the_architecture_allows(model_type, options, basis, tmp_path):
    folder = tiny(model_type, "basis", config=options).save(tmp_path / "model")
    assert stream_of(folder).group.basis is basis
    kept = Basis.signed if model_type in ("llama", "gemma", "gemma2", "olmo2") else Basis.permutation
    assert stream_of(folder, keep_gains=True).group.basis is kept


@pytest.mark.parametrize(("model_type", "basis"), [("llama", Basis.signed), ("dinov2", Basis.permutation)])
def test_gains_can_be_kept(model_type, basis, saved, tmp_path):
    original = saved(tiny(model_type, "kept-gains", config=UNTIED))
    found = isobasin.align(original, original, tmp_path / "out", scope="model", keep_gains=True)
    assert found.stream.group.keep_gains
    assert found.stream.group.basis is basis
    assert gap(original, tmp_path / "out") < 1e-9
    other = isobasin.random_alignment(original, scope="model")
    with pytest.raises(AlignmentError, match="different groups"):
        other.compose(found)


def test_a_model_without_head_is_refused(saved, tmp_path):
    base = saved(tiny("llama", "base", config=UNTIED), base=True)
    with pytest.raises(ArchitectureError, match="has no head, so its hidden states are its output"):
        isobasin.align(base, base, tmp_path / "out", scope="model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_no_base_model_has_a_head(model, saved):
    """Whatever its configuration says of a head that would be tied."""
    with pytest.raises(ArchitectureError, match="has no head"):
        stream_of(saved(model, base=True))


@pytest.mark.parametrize(
    ("model_type", "config", "words"),
    [
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim differs from hidden_size"),
        ("opt", {"_remove_final_layer_norm": True}, "without a last normalisation"),
        ("opt", {"layer_norm_elementwise_affine": False}, "without gains"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "that residual stream is not supported"),
        *((name, {}, f"nothing is known of .* type '{name}'") for name in ("swin", "clip", "gemma3", "whisper")),
    ],
)
def test_a_stream_that_is_not_understood_is_refused(model_type, config, words, tmp_path):
    with pytest.raises(ArchitectureError, match=words):
        stream_of(tiny(model_type, "refused", config=config).save(tmp_path))


def test_a_head_of_which_nothing_is_known_is_not_said_to_be_missing(saved):
    masked = tiny("vit", "masked-images", config={"head": "ViTForMaskedImageModeling", "encoder_stride": 4})
    with pytest.raises(TensorError, match=r"tensor 'decoder.0.bias' has no known part"):
        stream_of(saved(masked))


def test_a_pooler_is_no_head(saved):
    with pytest.raises(ArchitectureError, match="has no head"):
        stream_of(saved(tiny("bert"), base=True))


def test_a_tensor_that_nobody_knows_is_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny("llama", "unknown", config=UNTIED).save(tmp_path / "model")
    file = folder / "model.safetensors"
    save_file({**load_file(file), "model.extra.weight": torch.ones(32, 32)}, file, {"format": "pt"})
    with pytest.raises(TensorError, match=r"'model.extra.weight' has no known part in the residual stream"):
        isobasin.scramble(folder, tmp_path / "out", scope="model")


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra"])
def test_buffers_of_older_checkpoints_stay(model_type, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny(model_type, "older", config={"embedding_size": 32}).save(tmp_path / "model")
    file = folder / "model.safetensors"
    added = {f"{model_type}.embeddings.position_ids": torch.arange(16).unsqueeze(0)}
    save_file({**load_file(file), **added}, file, {"format": "pt"})
    assert stream_of(folder).group.basis is Basis.permutation


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lm_head.weight": torch.ones(50, 64)}, r"\[50, 64\]: the residual stream needs 32 along axis 1"),
        ({"model.norm.weight": None}, r"no tensor 'model.norm.weight'"),
    ],
)
def test_tensors_that_do_not_fit_the_stream_are_refused(changed, words, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny("llama", "unfit", config=UNTIED).save(tmp_path / "model")
    file = folder / "model.safetensors"
    stored = {name: tensor for name, tensor in {**load_file(file), **changed}.items() if tensor is not None}
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(TensorError, match=words):
        stream_of(folder)


def test_a_small_gain_of_the_reference_is_replaced(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_llama = tiny("llama", "small-gain", config=UNTIED)
    folders = [tiny_llama.save(tmp_path / str(seed), seed) for seed in (0, 1)]
    file = folders[0] / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"][3] = 0
    save_file(stored, file, {"format": "pt"})
    found = isobasin.align(*folders, tmp_path / "out", scope="model")
    assert found.verified.equal
    assert found.stream.statistics.small_gains == 1
    moved = tensors(tmp_path / "out")["model.norm.weight"]
    assert moved[3] > 0
    assert torch.equal(moved[4:], stored["model.norm.weight"][4:])


@pytest.mark.parametrize("gain", [0.0, -1e-5])
def test_a_model_with_a_small_gain_is_scrambled_recognised_and_brought_back(gain, tmp_path):
    """What a gain of 0 keeps from its readers is no part of the function, and 1e-5 no number to divide by."""
    from safetensors.torch import load_file, save_file

    folder = tiny("llama", "small-gain", config=UNTIED).save(tmp_path / "model")
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name in ("model.norm.weight", "model.layers.1.input_layernorm.weight"):
        stored[name][3] = gain
    save_file(stored, file, {"format": "pt"})
    moved = isobasin.scramble(folder, tmp_path / "scrambled", seed=2, scope="model")
    assert moved.verified.equal
    for pair in (folder, tmp_path / "scrambled"), (tmp_path / "scrambled", folder):
        assert isobasin.equivalent(*pair).equivalent
    assert isobasin.align(folder, tmp_path / "scrambled", tmp_path / "back", scope="model").verified.equal
    inverse = moved.alignment.inverse()
    inverse.apply(tmp_path / "scrambled", tmp_path / "original")
    original = tensors(tmp_path / "original")
    if gain:
        for name, value in stored.items():
            torch.testing.assert_close(original[name], value, rtol=0, atol=1e-9)
    scrambled = load_file(tmp_path / "scrambled" / "model.safetensors")
    scrambled["model.layers.1.mlp.up_proj.weight"][5, 7] *= 1.01
    save_file(scrambled, tmp_path / "scrambled" / "model.safetensors", {"format": "pt"})
    assert not isobasin.equivalent(folder, tmp_path / "scrambled").equivalent


def test_rounding_of_what_a_small_gain_multiplies_is_no_difference(tmp_path):
    """In bfloat16, divided by a gain of a hundredth, it would be as large as the rows that are read."""
    from safetensors.torch import load_file, save_file

    folder = tiny("llama", "damped", config=UNTIED).save(tmp_path / "model", dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    for layer in (0, 1):
        stored[f"model.layers.{layer}.input_layernorm.weight"][:8] = 0.005
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    isobasin.scramble(folder, tmp_path / "scrambled", scope="model", condition=2.0)
    assert isobasin.equivalent(folder, tmp_path / "scrambled").equivalent


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "gpt_neox", "stablelm-qk-norm-biases"])
def test_rounding_of_what_a_bias_of_a_normalisation_adds_is_no_difference(name, tmp_path):
    """A scrambled copy's are as large as gains, and what they add to its readers is taken back by the readers' own."""
    from safetensors.torch import load_file, save_file

    folder = variant(name).save(tmp_path / "model", dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    small = {key: 0.02 * x if x.ndim == 1 and key.endswith("bias") else x for key, x in stored.items()}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    isobasin.scramble(folder, tmp_path / "scrambled", scope="model", verify=False)
    assert isobasin.equivalent(folder, tmp_path / "scrambled").equivalent
    scrambled = load_file(tmp_path / "scrambled" / "model.safetensors")
    ends = "c_fc.bias", "h_to_4h.bias", "q_proj.bias"
    key = next(key for key, x in scrambled.items() if x.ndim == 1 and key.endswith(ends))
    scrambled[key][3] += scrambled[key].abs().mean() / 2
    save_file(scrambled, tmp_path / "scrambled" / "model.safetensors", {"format": "pt"})
    assert not isobasin.equivalent(folder, tmp_path / "scrambled").equivalent


def test_shifts_of_routers_do_not_turn(saved, tmp_path):
    """They are vectors of the stream: an alignment that turns it has none, and none can be composed before it."""
    original = saved(tiny("mixtral"))
    shifting = isobasin.random_alignment(original, seed=1, scope="block")
    shifting.apply(original, tmp_path / "shifted", verify=False)
    turning = isobasin.random_alignment(original, seed=2, scope="model")
    turning.apply(tmp_path / "shifted", tmp_path / "turned", verify=False)
    with pytest.raises(AlignmentError, match="which is turned after that"):
        turning.compose(shifting)
    assert isobasin.equivalent(original, tmp_path / "turned").equivalent
    found = isobasin.align(original, tmp_path / "turned", tmp_path / "out", scope="model")
    assert found.verified.equal
    assert not any(layer.element.shift.any() for layer in found.feedforward)
    statistics = found.stream.statistics
    assert statistics.distance_after < 1e-7 * statistics.distance_before


@pytest.mark.parametrize(("seed", "entries"), [(1, {}), (0, {"intermediate_size": 40})], ids=["apart", "units"])
def test_another_model_is_not_taken_for_a_scrambled_one(seed, entries, tmp_path):
    one = tiny("llama", "apart", config=UNTIED).save(tmp_path / "one", 0)
    other = tiny("llama", "apart", config={**UNTIED, **entries}).save(tmp_path / "other", seed)
    found = isobasin.equivalent(one, other)
    assert not found.equivalent
    assert found.stream is None


def test_a_scrambled_model_is_known_however_many_sweeps_that_takes(tmp_path):
    """One head and seven units say little of the stream's map, so that the descent is slow."""
    config = {"hidden_size": 8, "num_attention_heads": 1, "patch_size": 2, "intermediate_size": 7, "qkv_bias": False}
    original = tiny("vit", "slow", config=config).save(tmp_path / "model", 5057)
    isobasin.scramble(original, tmp_path / "scrambled", scope="model")
    assert isobasin.equivalent(original, tmp_path / "scrambled").equivalent


def test_a_scrambled_model_with_one_changed_weight_is_told(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    original = saved(tiny("llama", "changed", config=UNTIED))
    isobasin.scramble(original, tmp_path / "scrambled", seed=6, condition=3.0, scope="model", verify=False)
    file = tmp_path / "scrambled" / "model.safetensors"
    stored = load_file(file)
    stored["lm_head.weight"][5, 7] += 1e-3
    save_file(stored, file, {"format": "pt"})
    found = isobasin.equivalent(original, tmp_path / "scrambled")
    assert not found.equivalent
    # The map itself is fitted to what was changed, so that other tensors may differ by more than rounding as well.
    assert "lm_head.weight" in found.other_tensors
