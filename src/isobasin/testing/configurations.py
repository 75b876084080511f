"""The configuration of every family's usual tiny model: 2 layers, 4 heads, width 32."""

from __future__ import annotations

from typing import Any

_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**_HEADS, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
_POSITIONS = {**SIZES, **_TEXT, "max_position_embeddings": 16}
VISION = {"image_size": 8, "patch_size": 4}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 8,
}


def _encoder(name: str, head: str = "ForMaskedLM", **facts: Any) -> dict[str, Any]:
    return {"config": _POSITIONS, "base": f"{name}Model", "head": f"{name}{head}", **facts}


def _decoder(name: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    names = {"base": f"{name}Model", "head": f"{name}ForCausalLM"}
    return {"config": {**config, **_TEXT}, **names, "causal": True, **facts}


def _vision(name: str, head: str = "ForImageClassification", **facts: Any) -> dict[str, Any]:
    return {**_encoder(name, head), "config": {**SIZES, **VISION, **facts}}


def _tower(name: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"config": config, "base": f"{name}Model", "head": f"{name}Model", **facts}


def _towers(name: str) -> dict[str, Any]:
    return _tower(name, {"text_config": _POSITIONS, "vision_config": {**SIZES, **VISION}})


def _translator(name: str, head: str = "", **config: Any) -> dict[str, Any]:
    sides = {
        f"{side}_{count}": number
        for side in ("encoder", "decoder")
        for count, number in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    text = {**_TEXT, **sides, "d_model": 32, "decoder_start_token_id": 0, **config}
    return {"config": text, "base": f"{name}Model", "head": head or f"{name}ForConditionalGeneration"}


def _with(facts: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {**facts, "config": {**facts["config"], **config}}


def rope(share: float, kind: str = "default", **others: Any) -> dict[str, Any]:
    """Settings of a rotation of this share of a head's features."""
    return {"rope_type": kind, "rope_theta": 1e4, "partial_rotary_factor": share, **others}


# Measured on these models at condition 1e3: 5e-14 with RMSNorm, because its input, cast to float32, is mostly the very
# same number; where it falls on the other side of a rounding boundary, one float32 step (6e-8) enters and grows.
# Scores of GPT-J: 1e-7 at condition 10, 1e-5 at 1e3, since queries and keys are rounded after the map.
_RMS = {"tolerance": 1e-6, "reason": "transformers computes RMSNorm in float32 whatever the model's dtype"}
_NORM = {"tolerance": 1e-6, "reason": "transformers computes this LayerNorm in float32 whatever the model's dtype"}
_SCORES: dict[str, Any] = {
    "tolerance": 1e-6,
    "amplified": True,
    "reason": "transformers casts queries and keys to float32 before their product",
}
# What is normalised of latents is in another basis, so it is rounded to another float32 number everywhere.
_LATENTS = {**_RMS, "tolerance": 1e-5}
_FLOAT = {"tolerance": 1e-6, "reason": "transformers computes this softmax in float32 whatever the model's dtype"}
_GROUPED = {**SIZES, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CLAMPED = {"num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5}
_LATENT = {
    **SIZES,
    "q_lora_rank": 14,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
CHOSEN_GROUPS = {"n_group": 2, "topk_group": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": _vision("ViT"),
    "deit": _vision("DeiT"),
    "dinov2": {**_vision("Dinov2"), "config": {**_HEADS, **VISION, "mlp_ratio": 2}},
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta"),
    "electra": _with(_encoder("Electra"), embedding_size=16),
    "xlm-roberta": _encoder("XLMRoberta"),
    # Three layers, the first two of which share one block.
    "albert": _with(_encoder("Albert"), embedding_size=16, num_hidden_groups=2, num_hidden_layers=3),
    "roformer": _encoder("RoFormer", eager=True),
    "distilbert": {
        **_encoder("DistilBert"),
        "config": {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 16,
            **_TEXT,
        },
    },
    "clip": _towers("CLIP"),
    "clip_text_model": _tower("CLIPText", _POSITIONS, head="CLIPTextModelWithProjection", causal=True),
    "clip_vision_model": _tower("CLIPVision", {**SIZES, **VISION}, head="CLIPVisionModelWithProjection"),
    "siglip": _towers("Siglip"),
    "siglip_text_model": _tower("SiglipText", _POSITIONS),
    "siglip_vision_model": _tower("SiglipVision", {**SIZES, **VISION}),
    "gemma3": _tower(
        "Gemma3",
        {
            "text_config": {**_GROUPED, **_TEXT, "head_dim": 8},
            "vision_config": {**SIZES, **VISION, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            "image_token_index": 49,
        },
        head="Gemma3ForConditionalGeneration",
        **_RMS,
    ),
    "bart": _translator("Bart", max_position_embeddings=16),
    "marian": _translator("Marian", max_position_embeddings=16, head="MarianMTModel"),
    # Tables whose entries short texts already read.
    "t5": {
        "config": {**_T5, **_TEXT, "decoder_start_token_id": 0},
        "base": "T5Model",
        "head": "T5ForConditionalGeneration",
        **_RMS,
    },
    "mpnet": _with(_encoder("MPNet", eager=True), max_position_embeddings=140, pad_token_id=1, eos_token_id=2),
    "beit": _vision("Beit", use_relative_position_bias=True),
    # Two stages, of width 32 and 64; four windows in the first, shifted in its second layer, and one in the second.
    "swin": {
        "config": {
            "embed_dim": 32,
            "depths": [2, 1],
            "num_heads": [4, 8],
            "window_size": 2,
            "mlp_ratio": 2,
            **VISION,
            "patch_size": 2,
        },
        "base": "SwinModel",
        "head": "SwinForImageClassification",
    },
    "whisper": _translator("Whisper", num_mel_bins=8, max_source_positions=10, max_target_positions=16),
    "gpt2": _decoder("GPT2", _GPT, head="GPT2LMHeadModel"),
    "gpt_bigcode": _decoder("GPTBigCode", _GPT),
    "gpt_neo": _decoder(
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 16,
        },
        eager=True,
        scale=0.1,  # scores are not divided by anything
        **_SCORES,
    ),
    "opt": _decoder(
        "OPT",
        {**_HEADS, "ffn_dim": 48, "max_position_embeddings": 16},
    ),
    "llama": _decoder("Llama", _GROUPED, **_RMS),
    "mistral": _decoder("Mistral", _GROUPED, **_RMS),
    "qwen2": _decoder("Qwen2", _GROUPED, **_RMS),
    "qwen3": _decoder("Qwen3", {**_GROUPED, "head_dim": 8}, **_RMS),
    "qwen3_moe": _decoder("Qwen3Moe", {**_GROUPED, **_EXPERTS, "head_dim": 8}, **_RMS),
    "olmo2": _decoder("Olmo2", _GROUPED, **_RMS),
    "gemma3_text": _decoder("Gemma3", {**_GROUPED, "head_dim": 8}, base="Gemma3TextModel", **_RMS),
    "gpt_oss": _decoder("GptOss", {**_GROUPED, **_CLAMPED, "head_dim": 8}, eager=True, **_RMS),
    "bloom": _decoder("Bloom", SIZES, eager=True, **_FLOAT),
    "mpt": _decoder("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, eager=True, **_FLOAT),
    "gpt_neox": _decoder("GPTNeoX", {**SIZES, "rope_parameters": rope(0.5)}),
    "gptj": _decoder("GPTJ", {**_GPT, "rotary_dim": 4}, eager=True, **_SCORES),
    "mixtral": _decoder("Mixtral", {**_GROUPED, "num_local_experts": 3}, **_RMS),
    "qwen2_moe": _decoder(
        "Qwen2Moe",
        {
            **_GROUPED,
            **_EXPERTS,
            "shared_expert_intermediate_size": 20,
            "mlp_only_layers": [1],
        },
        **_RMS,
    ),
    "gemma": _decoder("Gemma", {**_GROUPED, "head_dim": 8}, **_RMS),
    # Scores are capped where that matters: they are well above 2.
    "gemma2": _decoder(
        "Gemma2",
        {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
        eager=True,
        **_RMS,
    ),
    "phi": _decoder("Phi", _GROUPED),
    "phi3": _decoder("Phi3", _GROUPED, **_RMS),
    "olmo": _decoder("Olmo", _GROUPED, **_NORM),
    "stablelm": _decoder("StableLm", _GROUPED),
    "starcoder2": _decoder("Starcoder2", _GROUPED),
    "cohere": _decoder("Cohere", _GROUPED, **_SCORES),
    "falcon": _decoder(
        "Falcon", {k: v for k, v in SIZES.items() if k != "intermediate_size"} | {"ffn_hidden_size": 48}
    ),
    "smollm3": _decoder("SmolLM3", {**_GROUPED, "no_rope_layer_interval": 2}, **_RMS),
    "deepseek_v2": _decoder("DeepseekV2", {**_LATENT, "q_lora_rank": None}, **_LATENTS),
    "deepseek_v3": _decoder("DeepseekV3", {**_LATENT, **CHOSEN_GROUPS, "num_key_value_heads": 4}, **_LATENTS),
    "glm": _decoder("Glm", {**_GROUPED, "head_dim": 8}, **_RMS),
    "granite": _decoder(
        "Granite",
        {
            **_GROUPED,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
        **_RMS,
    ),
    "modernbert": _encoder("ModernBert", **_SCORES),
    # transformers has no head for it.
    "dinov3_vit": _vision("DINOv3ViT", "Model", num_register_tokens=2),
    "isobasin_vit": _with(_vision("IsobasinViT"), rotary=True),
    "isobasin_bert": _with(_encoder("IsobasinBert"), heads_per_layer=[8, 4]),
    "isobasin_gpt2": _with(_decoder("IsobasinGPT2", _GPT, head="IsobasinGPT2LMHeadModel"), heads_per_layer=[2, 8]),
}
