"""An example of every family, a row each, and its variants: what `certify`, the documentation and the tests go through.

Usually 2 layers, 4 heads, width 32. A row has the classes in transformers, what its configuration says, and what every
variant changes of that; a variant may be of another class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isobasin.architectures.tiny import Single, TinyModel

_Entries = Mapping[str, Any]
_Row = tuple[TinyModel, ...]
_NORMS, _LATENTS, _SCORES, _SOFTMAX = Single.norms, Single.latents, Single.scores, Single.softmax

_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {**_HEADS, "intermediate_size": 48}
_PATCHES = {"image_size": 8, "patch_size": 4}
_POSITIONS = {**_SIZES, **_TEXT, "max_position_embeddings": 16}
_VISION = {**_SIZES, **_PATCHES}
_TOWERS = {"text_config": _POSITIONS, "vision_config": _VISION}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_EIGHT = {**_GROUPED, "head_dim": 8}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CHOSEN_GROUPS = {"n_group": 2, "topk_group": 1}
_LATENT = {
    **_SIZES,
    **{"q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 4, "qk_rope_head_dim": 8, "v_head_dim": 6},
    **{"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
_SIDES = {
    **_TEXT,
    **{"d_model": 32, "decoder_start_token_id": 0},
    **{"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
}
# Tables whose entries short texts already read.
_BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 8}


def _rope(share: float, kind: str = "default", **others: Any) -> dict[str, Any]:
    """Settings of a rotation of this share of a head's features."""
    return {"rope_type": kind, "rope_theta": 1e4, "partial_rotary_factor": share, **others}


def _row(
    model_type: str,
    name: str,
    head: str,
    config: _Entries,
    *,
    base: str = "Model",
    variants: Mapping[str, _Entries] | None = None,
    **facts: Any,
) -> _Row:
    """The usual form of a family, then its variants.

    Args:
        model_type: As in `config.json`.
        name: What the names of its classes in transformers begin with.
        head: What the name of the one with a head ends with.
        config: What its configuration says.
        base: What the name of the one without a head ends with.
        variants: What each says otherwise (`TinyModel.but`).
        facts: Further ones.
    """
    usual = TinyModel(model_type, "", dict(config), name + base, name + head, **facts)
    return usual, *(usual.but(change, variant) for variant, change in (variants or {}).items())


def _decoder(model_type: str, name: str, config: _Entries, head: str = "ForCausalLM", **facts: Any) -> _Row:
    return _row(model_type, name, head, {**config, **_TEXT}, causal=True, **facts)


def _encoder(model_type: str, name: str, config: _Entries | None = None, **facts: Any) -> _Row:
    return _row(model_type, name, "ForMaskedLM", {**_POSITIONS, **(config or {})}, **facts)


def _images(model_type: str, name: str, config: _Entries | None = None, **facts: Any) -> _Row:
    return _row(model_type, name, "ForImageClassification", {**_VISION, **(config or {})}, **facts)


_BIASES = {"biases": {"attention_bias": True}}
_WHOLE = {"whole": {"rope_parameters": _rope(1.0)}}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

_ROWS = (
    _images("vit", "ViT", variants={"no-qkv-bias": {"qkv_bias": False}}),
    _images("deit", "DeiT"),
    _row(
        *("dinov2", "Dinov2", "ForImageClassification", {**_HEADS, **_PATCHES, "mlp_ratio": 2}),
        variants={"swiglu": {"use_swiglu_ffn": True}},
    ),
    _encoder("bert", "Bert", variants={"decoder": {"is_decoder": True, "head": "BertLMHeadModel", "causal": True}}),
    _encoder("roberta", "Roberta"),
    _encoder("electra", "Electra", {"embedding_size": 16}),
    _encoder("xlm-roberta", "XLMRoberta"),
    # Three layers, the first two of which share one block.
    _encoder(
        *("albert", "Albert", {"embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 3}),
        variants={"inner": {"num_hidden_groups": 1, "inner_group_num": 2}},
    ),
    _encoder("roformer", "RoFormer", eager=True, variants={"rotary-value": {"rotary_value": True}}),
    _row(
        *("distilbert", "DistilBert", "ForMaskedLM"),
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 16, **_TEXT},
    ),
    _row(
        *("clip", "CLIP", "Model", _TOWERS),
        variants={"unlike": {"vision_config": {**_VISION, "num_attention_heads": 8}}},
    ),
    _row("clip_text_model", "CLIPText", "ModelWithProjection", _POSITIONS, causal=True),
    _row("clip_vision_model", "CLIPVision", "ModelWithProjection", _VISION),
    _row("siglip", "Siglip", "Model", _TOWERS),
    _row("siglip_text_model", "SiglipText", "Model", _POSITIONS),
    _row("siglip_vision_model", "SiglipVision", "Model", _VISION),
    _row(
        *("gemma3", "Gemma3", "ForConditionalGeneration"),
        {
            "text_config": {**_EIGHT, **_TEXT},
            "vision_config": {**_VISION, "vision_use_head": False},
            **{"mm_tokens_per_image": 4, "image_token_index": 49},
        },
        single=_NORMS,
    ),
    _row(
        *("bart", "Bart", "ForConditionalGeneration", {**_SIDES, "max_position_embeddings": 16}),
        variants={"unlike": {"encoder_layers": 3, "decoder_layers": 1, "decoder_attention_heads": 8}},
    ),
    _row("marian", "Marian", "MTModel", {**_SIDES, "max_position_embeddings": 16}),
    _row(
        *("t5", "T5", "ForConditionalGeneration"),
        {**_BUCKETS, **{"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, **_TEXT}
        | {"decoder_start_token_id": 0},
        single=_NORMS,
        variants={
            "gated": {"d_kv": 12, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3},
            "encoder": {"is_encoder_decoder": False, "base": "T5EncoderModel", "head": "T5ForTokenClassification"},
        },
    ),
    _encoder("mpnet", "MPNet", {"max_position_embeddings": 140, "pad_token_id": 1, "eos_token_id": 2}, eager=True),
    _images(
        *("beit", "Beit", {"use_relative_position_bias": True}),
        variants={
            "shared": {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
            "absolute": {"use_relative_position_bias": False, "use_absolute_position_embeddings": True},
        },
        # A head that reads the class token or all others alone doesn't see all that the last layer's table is for;
        # without a head, what would normalise the others' mean leaves the stream itself as the output.
        certified={"use_mean_pooling": False, "head": "BeitModel"},
    ),
    # Two stages, of width 32 and 64; four windows in the first, shifted in its second layer, and one in the second.
    _row(
        *("swin", "Swin", "ForImageClassification"),
        {"embed_dim": 32, "depths": [2, 1], "num_heads": [4, 8], "window_size": 2, "mlp_ratio": 2}
        | {"image_size": 8, "patch_size": 2},
        variants={"no-qkv-bias": {"qkv_bias": False}},
        # Three patches a side, which windows pad.
        certified={"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "mlp_ratio": 1.5},
    ),
    _row(
        *("whisper", "Whisper", "ForConditionalGeneration"),
        {**_SIDES, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
    ),
    _decoder("gpt2", "GPT2", _GPT, "LMHeadModel"),
    _decoder("gpt_bigcode", "GPTBigCode", _GPT, variants={"multi-head": {"multi_query": False}}),
    _decoder(
        *("gpt_neo", "GPTNeo"),
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 8, "max_position_embeddings": 16},
        eager=True,
        scale=0.1,  # scores are not divided by anything
        single=_SCORES,
    ),
    _decoder(
        *("opt", "OPT", {**_HEADS, "ffn_dim": 48, "max_position_embeddings": 16}),
        variants={"no-bias": {"enable_bias": False}},
    ),
    _decoder(
        *("llama", "Llama", _GROUPED),
        single=_NORMS,
        variants={
            **_BIASES,
            "head-dim": {"head_dim": 12},
            "multi-head": {"num_key_value_heads": None},
            "scaled": {
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **_LLAMA3},
                "max_position_embeddings": 64,
            },
        },
    ),
    _decoder("mistral", "Mistral", _GROUPED, single=_NORMS),
    _decoder("qwen2", "Qwen2", _GROUPED, single=_NORMS, variants={"head-dim": {"head_dim": 6}}),
    _decoder("qwen3", "Qwen3", _EIGHT, single=_NORMS),
    _decoder("qwen3_moe", "Qwen3Moe", {**_EIGHT, **_EXPERTS}, single=_NORMS),
    _decoder("olmo2", "Olmo2", _GROUPED, single=_NORMS),
    _decoder("gemma3_text", "Gemma3", _EIGHT, base="TextModel", single=_NORMS),
    _decoder(
        *("gpt_oss", "GptOss", {**_EIGHT, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5}),
        eager=True,
        single=_NORMS,
        # A limit that small models don't reach would let more symmetries pass.
        certified={"swiglu_limit": 0.5},
    ),
    _decoder("bloom", "Bloom", _SIZES, eager=True, single=_SOFTMAX),
    _decoder("mpt", "Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, eager=True, single=_SOFTMAX),
    _decoder(
        *("gpt_neox", "GPTNeoX", {**_SIZES, "rope_parameters": _rope(0.5)}),
        variants={
            "no-bias": {"attention_bias": False},
            **_WHOLE,
            "scaled": {"rope_parameters": _rope(0.5, "linear", factor=2.0)},
        },
    ),
    _decoder(
        *("gptj", "GPTJ", {**_GPT, "rotary_dim": 4}), eager=True, single=_SCORES, variants={"whole": {"rotary_dim": 8}}
    ),
    _decoder("mixtral", "Mixtral", {**_GROUPED, "num_local_experts": 3}, single=_NORMS),
    _decoder(
        *("qwen2_moe", "Qwen2Moe"),
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
        single=_NORMS,
        variants={"no-bias": {"qkv_bias": False}},
    ),
    _decoder("gemma", "Gemma", _EIGHT, single=_NORMS, variants={"head-dim": {"head_dim": 12}}),
    # Scores are capped where that matters: they are well above 2.
    _decoder(
        *("gemma2", "Gemma2", {**_EIGHT, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}),
        eager=True,
        single=_SOFTMAX,
        variants=_BIASES,
    ),
    _decoder("phi", "Phi", _GROUPED, variants=_WHOLE),
    _decoder("phi3", "Phi3", _GROUPED, single=_NORMS, variants={"partial": {"rope_parameters": _rope(0.5)}}),
    _decoder("olmo", "Olmo", _GROUPED, single=_NORMS, variants=_BIASES),
    _decoder(
        *("stablelm", "StableLm", _GROUPED),
        variants={
            "qk-norm": {"qk_layernorm": True},
            "qk-norm-biases": {"qk_layernorm": True, "use_qkv_bias": True},
            "biases": {"use_qkv_bias": True, "use_parallel_residual": True},
        },
    ),
    _decoder("starcoder2", "Starcoder2", _GROUPED, variants={"no-bias": {"use_bias": False}}),
    _decoder("cohere", "Cohere", _GROUPED, single=_SCORES, variants={**_BIASES, "qk-norm": {"use_qk_norm": True}}),
    _decoder(
        *("cohere2", "Cohere2", {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"]}),
        single=_SCORES,
        variants=_BIASES,
    ),
    _decoder(
        "nemotron", "Nemotron", _GROUPED, variants={"biases": {"attention_bias": True, "mlp_bias": True}, **_WHOLE}
    ),
    _decoder(
        *("falcon", "Falcon", {**_HEADS, "ffn_hidden_size": 48}),
        variants={
            "grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "multi-head": {"multi_query": False, "bias": True},
            "alibi": {"alibi": True, "multi_query": False, "bias": True, "parallel_attn": False},
            "alibi-shared": {"alibi": True},
        },
    ),
    _decoder("smollm3", "SmolLM3", {**_GROUPED, "no_rope_layer_interval": 2}, single=_NORMS, variants=_BIASES),
    _decoder(
        *("deepseek_v2", "DeepseekV2", {**_LATENT, "q_lora_rank": None}),
        single=_LATENTS,
        variants={
            "query-latent": {"q_lora_rank": 14, "attention_bias": True, "mlp_bias": True},
            "groups": {**_CHOSEN_GROUPS, "topk_method": "group_limited_greedy"},
        },
    ),
    _decoder(
        *("deepseek_v3", "DeepseekV3", {**_LATENT, **_CHOSEN_GROUPS, "num_key_value_heads": 4}),
        single=_LATENTS,
        variants={
            "biases": {"attention_bias": True, "rope_interleave": False, "n_group": 1, "norm_topk_prob": False},
            "dense": {"first_k_dense_replace": 2, "q_lora_rank": None},
        },
    ),
    _decoder("glm", "Glm", _EIGHT, single=_NORMS, variants={"no-bias": {"attention_bias": False}}),
    _decoder(
        *("granite", "Granite"),
        {**_GROUPED, "attention_multiplier": 0.3, "embedding_multiplier": 3.0}
        | {"residual_multiplier": 0.7, "logits_scaling": 2.0},
        single=_NORMS,
        variants=_BIASES,
    ),
    _encoder("modernbert", "ModernBert", single=_SCORES, variants=_BIASES),
    # transformers has no head for it.
    _row(
        *("dinov3_vit", "DINOv3ViT", "Model", {**_VISION, "num_register_tokens": 2}),
        variants={
            "biases": {"query_bias": False, "key_bias": True, "use_gated_mlp": True},
            "no-bias": {"query_bias": False, "value_bias": False, "proj_bias": False},
        },
    ),
    _images(
        *("isobasin_vit", "IsobasinViT", {"rotary": True}),
        variants={"absolute": {"rotary": False, "heads_per_layer": [8, 4]}},
    ),
    _encoder("isobasin_bert", "IsobasinBert", {"heads_per_layer": [8, 4]}),
    _decoder("isobasin_gpt2", "IsobasinGPT2", {**_GPT, "heads_per_layer": [2, 8]}, "LMHeadModel"),
)

USUAL = {row[0].model_type: row[0] for row in _ROWS}
"""The usual form of every family, by model type."""

EXAMPLES = (*USUAL.values(), *(variant for row in _ROWS for variant in row[1:]))
"""The usual forms, then all variants."""


def tiny(model_type: str, variant: str = "", /, *, config: _Entries | None = None, **facts: Any) -> TinyModel:
    """A model of a known family: its usual form, but for some entries of the configuration and other facts."""
    return replace(USUAL[model_type].but(config or {}, variant), **facts)


def variant(name: str) -> TinyModel:
    """The example that prints as `name`, such as "llama-biases"."""
    return {str(model): model for model in EXAMPLES}[name]
