"""Resolving a checkpoint's specification: what is refused, and in which words."""

from __future__ import annotations

import json

import pytest
from resolving import config, refused, resolve, shapes

from isobasin.architectures.configuration import build, rotated
from isobasin.errors import ArchitectureError, TensorError


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_prefix_is_found(prefix):
    bert = config("bert")
    other = {"cls.bias": (50,), f"{prefix}encoder.layer.0.attention.output.LayerNorm.weight": (32,)}
    found = resolve(bert, shapes(bert, prefix) | other)
    assert found.attention[1].query.weight == f"{prefix}encoder.layer.1.attention.self.query.weight"
    assert found.attention[1].name == f"{prefix}encoder.layer.1.attention"


def test_two_prefixes_at_once_are_refused():
    bert = config("bert")
    message = refused(TensorError, bert, shapes(bert) | shapes(bert, "bert."))
    assert (
        "and 'bert.encoder.layer.0.attention.self.query.weight' are told apart by a prefix alone: keep one" in message
    )


def test_unknown_prefix_is_refused():
    bert = config("bert")
    message = refused(TensorError, bert, shapes(bert, "module."))
    assert "'encoder.layer.0.attention.self.query.weight'" in message
    assert "'bert.encoder.layer.0.attention.self.query.weight'" in message


def test_missing_tensors_are_counted():
    gpt2 = config("gpt2")
    tensors = shapes(gpt2, "transformer.")
    del tensors["transformer.h.0.attn.c_proj.bias"]
    message = refused(TensorError, gpt2, tensors)
    assert "'transformer.h.0.attn.c_proj.bias' is missing, of 8" in message
    del tensors["transformer.h.1.attn.c_attn.weight"], tensors["transformer.h.1.attn.c_attn.bias"]
    assert "'transformer.h.0.attn.c_proj.bias' is missing and 2 more, of 8" in refused(TensorError, gpt2, tensors)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("h.1.attn.c_attn.weight", (96, 32), (32, 96)),
        ("h.1.attn.c_attn.bias", (32,), (96,)),
        ("h.1.attn.c_proj.bias", (32, 1), (32,)),
    ],
)
def test_wrong_shape_names_the_configuration(name, wrong, right):
    gpt2 = config("gpt2")
    message = refused(TensorError, gpt2, shapes(gpt2) | {name: wrong})
    assert f"{name!r} has shape {wrong}, expected {right} from n_embd=32, n_head=4" in message


def test_wrong_number_of_key_value_heads():
    llama = config("llama")
    message = refused(TensorError, config("llama", num_key_value_heads=4), shapes(llama, "model."))
    assert "'model.layers.0.self_attn.k_proj.weight' has shape (16, 32), expected (32, 32)" in message
    assert "num_key_value_heads=4" in message


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "layers.0.self_attn.q_norm.weight"),
        ("llama", "layers.1.self_attn.q_proj.bias"),
        ("llama", "layers.1.self_attn.o_proj.bias"),
        ("llama", "layers.0.self_attn.q_proj.weight_scale"),
        ("llama", "layers.0.self_attn.v_proj.lora_A.weight"),
        ("llama", "layers.0.self_attn.sinks"),
        ("mistral", "layers.0.self_attn.k_proj.bias"),
        ("qwen2", "layers.0.self_attn.o_proj.bias"),
        ("bert", "encoder.layer.0.attention.self.distance_embedding.weight"),
        ("bert", "encoder.layer.0.attention.output.dense.weight_scale"),
        ("gpt2", "h.1.attn.q_attn.weight"),
        ("gptj", "h.1.attn.q_proj.bias"),
        ("falcon", "h.0.self_attention.query_key_value.bias"),
        ("phi3", "layers.0.self_attn.qkv_proj.bias"),
        ("phi", "layers.0.self_attn.q_layernorm.weight"),
        ("cohere", "layers.0.self_attn.q_norm.weight"),
        ("modernbert", "layers.1.attn.Wqkv.bias"),
        ("dinov3_vit", "layer.0.attention.k_proj.bias"),
        ("vit", "encoder.layer.1.attention.attention.relative_position_bias"),
        ("vit", "encoder.layer.1.attention.output.dense.lora_B.weight"),
        ("albert", "encoder.albert_layer_groups.0.albert_layers.0.attention.scale"),
        ("whisper", "decoder.layers.1.encoder_attn.k_proj.bias"),
        ("clip", "text_model.encoder.layers.1.self_attn.q_norm.weight"),
        ("gpt_neo", "h.0.attn.attention.q_proj.bias"),
        ("t5", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.k.bias"),
        ("mpnet", "encoder.layer.0.attention.attn.norm.weight"),
        ("beit", "encoder.layer.1.attention.attention.key.bias"),
        ("swin", "encoder.layers.1.blocks.0.attention.self.logit_scale"),
    ],
)
def test_unexplained_tensor_in_an_attention_module(model_type, name):
    folder_config = config(model_type)
    message = refused(TensorError, folder_config, shapes(folder_config) | {name: (32,)})
    assert f"{name!r} is unexpected" in message


@pytest.mark.parametrize(("model_type", "flag"), [("llama", "attention_bias"), ("opt", "enable_bias")])
def test_bias_that_the_configuration_denies_or_promises(model_type, flag):
    without, with_bias = config(model_type, **{flag: False}), config(model_type, **{flag: True})
    assert "is unexpected" in refused(TensorError, without, shapes(with_bias))
    assert "is missing and 7 more" in refused(TensorError, with_bias, shapes(without))


@pytest.mark.parametrize(
    ("model_type", "switch"),
    [("mistral", "attention_bias"), ("qwen2", "attention_bias"), ("olmo2", "mlp_bias"), ("cohere2", "mlp_bias")],
)
def test_a_switch_that_the_model_type_does_not_have_is_read_by_nobody(model_type, switch):
    own = config(model_type)
    assert switch not in own
    for value in (True, False):
        assert resolve({**own, switch: value}, shapes(own)) == resolve(own)


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("gpt2", ["attn.bias", "attn.masked_bias"]),
        ("gptj", ["attn.bias", "attn.masked_bias", "attn.embed_positions"]),
        ("gpt_neox", ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"]),
        ("gpt_neo", ["attn.attention.bias", "attn.attention.masked_bias"]),
        ("gpt_bigcode", ["attn.bias"]),
        ("llama", ["self_attn.rotary_emb.inv_freq"]),
        ("phi", ["self_attn.rotary_emb.inv_freq"]),
        ("falcon", ["self_attention.rotary_emb.inv_freq"]),
        ("modernbert", ["attn.rotary_emb.inv_freq"]),
        ("t5", ["layer.1.EncDecAttention.relative_attention_bias.weight"]),
        ("beit", ["attention.attention.relative_position_bias.relative_position_index"]),
        ("swin", ["blocks.0.attention.self.relative_position_index"]),
    ],
)
def test_buffers_of_old_checkpoints_are_ignored(model_type, names):
    folder_config = config(model_type)
    others = {"t5": "decoder.block", "beit": "encoder.layer", "swin": "encoder.layers"}
    layers = "h" if model_type in ("gpt2", "gptj", "gpt_neo", "gpt_bigcode", "falcon") else "layers"
    layers = others.get(model_type, layers)
    buffers = {f"{layers}.{layer}.{name}": (1, 1, 16, 16) for layer in range(2) for name in names}
    needed = shapes(folder_config)
    found = resolve(folder_config, needed | buffers)
    assert {name for block in found.attention for name in block.shapes()} == set(needed)


def test_more_layers_than_the_configuration_says():
    one, two = config("gpt2", n_layer=1), config("gpt2")
    message = refused(TensorError, one, shapes(two, "transformer."))
    assert "'transformer.h.1.attn.c_attn.weight' belongs to layer 1" in message
    assert "n_layer=1" in message
    assert len(resolve(config("gpt2", n_layer=12), None).attention) == 12


def test_a_layer_that_transformers_never_loads_stays():
    """DeepSeek-V3 keeps one more layer, which predicts a further token."""
    model = config("deepseek_v3")
    own = shapes(model, "model.")
    further = {name.replace(".layers.0.", ".layers.61."): shape for name, shape in own.items() if ".layers.0." in name}
    assert further
    found = resolve(model, own | further)
    assert not further.keys() & {name for block in found.attention for name in block.shapes()}
    other = {name.replace(".61.", ".62."): shape for name, shape in further.items()}
    assert "belongs to layer 62" in refused(TensorError, model, own | other)


def test_fewer_layers_than_the_configuration_says():
    assert "'h.2.attn.c_attn.weight' is missing and 3 more" in refused(
        TensorError, config("gpt2", n_layer=3), shapes(config("gpt2"))
    )


def test_names_that_only_look_like_attention_are_left_alone():
    opt = config("opt")
    others = {"decoder.layers.0.self_attn_layer_norm.weight": (32,), "xdecoder.layers.0.self_attn.z": (1,)}
    assert len(resolve(opt, shapes(opt) | others).attention) == 2


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("bert", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("roformer", {"add_cross_attention": True}, "add_cross_attention"),
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"position_embedding_type": "relative_key_query"}, "only 'absolute'"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "dequantise"),
        ("llama", {"text_config": {"model_type": "llama"}}, "nested"),
        ("vit", {"vision_config": {"hidden_size": 32}}, "nested"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned"),
        ("bert", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("bart", {"is_encoder_decoder": False}, "a bart decoder alone is not supported"),
        ("bart", {"add_cross_attention": True}, "add_cross_attention"),
        ("bart", {"encoder_attention_heads": 5}, "d_model 32 is not a multiple of encoder_attention_heads 5"),
        ("marian", {"decoder_attention_heads": 5}, "d_model 32 is not a multiple of decoder_attention_heads 5"),
        ("whisper", {"decoder_layers": 0}, "decoder_layers is 0"),
        ("clip", {"quantization_config": {"quant_method": "gptq"}}, "dequantise"),
        ("clip", {"text_config": {"pruned_heads": {"0": [1]}}}, "text_config.pruned_heads"),
        ("siglip", {"vision_config": {"num_hidden_layers": 0}}, "nothing to align"),
        ("gemma3", {"text_config": {"model_type": "llama"}}, "text_config has model_type 'llama'"),
        ("gemma3", {"vision_config": {"model_type": "clip_vision_model"}}, "supported with 'siglip_vision_model'"),
        ("clip_text_model", {"text_config": {"hidden_size": 32}}, "nested"),
        ("albert", {"inner_group_num": 0}, "must be positive"),
        ("gpt_bigcode", {"multi_query": False, "add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("gpt2", {"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
        ("bert", {"num_attention_heads": 0}, "positive"),
        ("vit", {"num_hidden_layers": 0}, "nothing to align"),
        ("llama", {"num_attention_heads": 5}, "transformers refuses"),
        ("llama", {"num_attention_heads": "4"}, "transformers refuses"),
        ("llama", {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ("qwen2", {"head_dim": 7}, "7"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"rope_type": "proportional"}}, "rope_type 'proportional'"),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "rope_type 'mrope'"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_type None"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.4}, "3 features"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 1.25}, "10 features, but a head has only 8"),
        ("gptj", {"rotary_dim": 3}, "3 features"),
        ("gptj", {"rotary_dim": 10}, "10 features, but a head has only 8"),
        ("gptj", {"rotary_dim": 0}, "rotary_dim must be given"),
        ("roformer", {"num_attention_heads": 32}, "1 features"),
        ("phi", {"qk_layernorm": True}, "has qk_layernorm: normalised queries and keys are not supported"),
        ("stablelm", {"qk_layernorm": True, "partial_rotary_factor": 0.0, "rope_parameters": None}, "where some of 3"),
        ("cohere", {"use_qk_norm": True, "num_attention_heads": 16, "num_key_value_heads": 16}, "where some of 3"),
        ("olmo", {"clip_qkv": 8.0}, "has clip_qkv: clipped"),
        ("olmo", {"clip_qkv": 0.0}, "has clip_qkv: clipped"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ("falcon", {"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("cohere", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for model type cohere"),
        ("phi", {"rope_parameters": None, "partial_rotary_factor": 0.4}, "3 features"),
        ("glm", {"rope_parameters": None, "partial_rotary_factor": 0.9}, "7 features"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "transformers refuses"),
        (
            "smollm3",
            {"no_rope_layers": [1], "layer_types": ["full_attention"] * 2},
            "no_rope_layers has 1 entries for 2 layers",
        ),
        (
            "modernbert",
            {"rope_parameters": {"sliding_attention": {"rope_type": "mrope", "rope_theta": 1e4}}},
            "rope_type 'mrope'",
        ),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2: latent attention has as many as"),
        ("deepseek_v2", {"kv_lora_rank": 0}, "kv_lora_rank is 0: sizes must be positive"),
        ("deepseek_v2", {"q_lora_rank": 0}, "q_lora_rank is 0: sizes must be positive"),
        ("deepseek_v3", {"qk_rope_head_dim": 7}, "RoPE requires an even rotary dimension"),
        ("deepseek_v3", {"first_k_dense_replace": None}, "first_k_dense_replace is None"),
        ("deepseek_v3", {"n_group": 4}, "n_group is 4: n_routed_experts 4 must be so many equal groups of at least 2"),
        ("deepseek_v3", {"n_group": None}, "n_group is None"),
        ("deepseek_v3", {"topk_group": 3}, "topk_group is 3: a router chooses 1 to 2 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 3}, "num_experts_per_tok is 3: a router chooses 1 to 2 experts"),
        ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok is None"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc': only 'greedy'"),
        ("deepseek_v3", {"v_head_dim": None}, "v_head_dim is None: sizes must be positive"),
        ("deepseek_v2", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rope_type 'mrope'"),
        ("deepseek_v2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ("t5", {"is_decoder": True}, "has is_decoder: a T5 decoder alone is not supported"),
        ("t5", {"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ("t5", {"relative_attention_num_buckets": 2}, "2 buckets for relative positions up to 8"),
        ("t5", {"relative_attention_max_distance": 4}, "8 buckets for relative positions up to 4"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets is 16: only 32"),
        ("beit", {"use_shared_relative_position_bias": True}, "only one is supported"),
        ("swin", {"num_heads": [4]}, "each stage needs both"),
        ("swin", {"depths": [2, 0]}, "each stage needs both"),
        ("swin", {"num_heads": [4, 7]}, "hidden_size 64 is not a multiple of num_heads 7"),
        ("swin", {"window_size": 3}, "window_size 3: the last stage's image has only 2 patches"),
        ("dinov3_vit", {"num_attention_heads": 16}, "heads of 2 features: rows and columns need a multiple of 4"),
    ],
)
def test_unsupported_configuration(model_type, changes, words):
    folder_config = config(model_type, **changes)
    assert words in refused(ArchitectureError, folder_config, {})


def test_no_model_type():
    assert "no model_type" in refused(ArchitectureError, {"hidden_size": 32}, {})


def test_unknown_model_type_and_nested_one():
    assert "did you mean bert" in refused(ArchitectureError, {"model_type": "bertt"}, {})
    nested = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    assert "nested" in refused(ArchitectureError, nested, {})


def test_defaults_of_old_configurations():
    """Keys that old files lack or name differently mean what transformers takes them to mean."""
    llama = config("llama", num_key_value_heads=None)
    del llama["num_key_value_heads"]
    assert resolve(llama).attention[0].group.kv_heads == 4
    neox = config("gpt_neox", rotary_pct=0.25, rotary_emb_base=10000)
    del neox["rope_parameters"]
    assert resolve(neox).attention[0].group.query_key.planes == ((0, 1),)
    scaled = config("llama", rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0})
    assert len(resolve(scaled).attention[0].group.query_key.planes) == 4


def test_layers_of_several_types_rotate_alike():
    """Each type is looked at, whichever comes first."""
    for half in ("full_attention", "sliding_attention"):
        rope = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
        rope[half]["partial_rotary_factor"] = 0.5
        gemma = config("gemma3_text", rope_parameters=rope, layer_types=["sliding_attention", "full_attention"])
        assert "partial_rotary_factor is not supported" in refused(ArchitectureError, gemma, {})
        with pytest.raises(ArchitectureError, match=r"other shares of a head, \[0\.5, 1\.0\]"):
            rotated(build("gemma3_text", gemma), 8, by_layer_type=True, partial=True)


def test_configuration_is_not_changed():
    llama = config("llama", rope_scaling={"type": "linear", "factor": 2.0})
    before = json.dumps(llama)
    resolve(llama)
    assert json.dumps(llama) == before
