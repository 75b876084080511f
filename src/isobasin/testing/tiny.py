"""Tiny random transformers models of every supported family, with the variants that change the attention's group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {**_HEADS, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
_POSITIONS = {**_SIZES, **_TEXT, "max_position_embeddings": 16}
_VISION = {"image_size": 8, "patch_size": 4}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 8,
}
_SCALE = 0.2


@dataclass(frozen=True)
class TinyModel:
    """One configuration of one family: 2 layers, 4 heads, width 32.

    Attributes:
        model_type: As in `config.json`.
        variant: What is unusual about it; empty for the family's usual form.
        config: Arguments of the configuration class.
        base: Class name of the model without head.
        head: Class name of a model with one.
        causal: Whether later positions are masked.
        tolerance: Relative difference that two equal models in float64 may show as transformers runs them.
        reason: Why that is more than float64 rounding; empty where it isn't.
        amplified: That difference grows with the condition number of the maps between the two.
        eager: The class has no other attention than transformers' own, whose softmax may be float32 elsewhere.
        scale: Size of the random weights.
    """

    model_type: str
    variant: str
    config: dict[str, Any]
    base: str
    head: str
    causal: bool = False
    tolerance: float = 1e-9
    reason: str = ""
    amplified: bool = False
    eager: bool = False
    scale: float = _SCALE

    def __str__(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type

    def allowed(self, condition: float) -> float:
        """`tolerance` between two models that maps of this condition number connect."""
        return self.tolerance * (max(1.0, condition / 10) if self.amplified else 1.0)

    def build(self, seed: int = 0, *, base: bool = False, dtype: torch.dtype = torch.float64) -> Any:
        """A model in evaluation mode with every parameter random: the initialisers would set biases to zero."""
        import transformers

        from isobasin import models

        name = self.base if base else self.head
        architecture = getattr(transformers, name, None) or getattr(models, name)
        # The "eager" attention of some families computes its softmax in float32; no other experts know float64.
        attention = "eager" if self.eager else "sdpa"
        config = architecture.config_class(**self.config, attn_implementation=attention, experts_implementation="eager")
        return randomise(architecture(config).double().eval(), seed, self.scale).to(dtype)

    def save(
        self, folder: Path, seed: int = 0, *, base: bool = False, dtype: torch.dtype = torch.float64, **options: Any
    ) -> Path:
        """Save such a model as a checkpoint, and return the folder; `options` go to `save_pretrained`."""
        self.build(seed, base=base, dtype=dtype).save_pretrained(folder, **options)
        return folder


def randomise(model: Any, seed: int, scale: float = _SCALE) -> Any:
    """Make every trainable parameter random, norm gains near 1, in place; the model itself is returned."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:  # RoFormer's rotary table is a frozen parameter
                gain = name == "weight" and "Norm" in type(module).__name__
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(scale * random + gain)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "e_score_correction_bias":
                # No gradient trains it, so it is a buffer; far from 0 it would keep experts from ever being chosen.
                buffer.copy_(scale / 2 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def tiny(model_type: str, variant: str = "", /, **facts: Any) -> TinyModel:
    """A configuration of a known family: its usual facts, and `config` changes."""
    usual = dict(_FAMILIES[model_type])
    config = {**usual.pop("config"), **facts.pop("config", {})}
    return TinyModel(model_type, variant, config, **{**usual, **facts})


def variant(name: str) -> TinyModel:
    """The entry of `TINY_MODELS` that prints as `name`, such as "llama-biases"."""
    return {str(model): model for model in TINY_MODELS}[name]


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`."""
    return json.loads((folder / "config.json").read_text())


def _encoder(name: str, head: str = "ForMaskedLM", **facts: Any) -> dict[str, Any]:
    return {"config": _POSITIONS, "base": f"{name}Model", "head": f"{name}{head}", **facts}


def _decoder(name: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    names = {"base": f"{name}Model", "head": f"{name}ForCausalLM"}
    return {"config": {**config, **_TEXT}, **names, "causal": True, **facts}


def _vision(name: str, head: str = "ForImageClassification", **facts: Any) -> dict[str, Any]:
    return {**_encoder(name, head), "config": {**_SIZES, **_VISION, **facts}}


def _tower(name: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"config": config, "base": f"{name}Model", "head": f"{name}Model", **facts}


def _towers(name: str) -> dict[str, Any]:
    return _tower(name, {"text_config": _POSITIONS, "vision_config": {**_SIZES, **_VISION}})


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


def _rope(share: float, kind: str = "default", **others: Any) -> dict[str, Any]:
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
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CLAMPED = {"num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5}
_LATENT = {
    **_SIZES,
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
_CHOSEN_GROUPS = {"n_group": 2, "topk_group": 1}
_FAMILIES: dict[str, dict[str, Any]] = {
    "vit": _vision("ViT"),
    "deit": _vision("DeiT"),
    "dinov2": {**_vision("Dinov2"), "config": {**_HEADS, **_VISION, "mlp_ratio": 2}},
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
    "clip_vision_model": _tower("CLIPVision", {**_SIZES, **_VISION}, head="CLIPVisionModelWithProjection"),
    "siglip": _towers("Siglip"),
    "siglip_text_model": _tower("SiglipText", _POSITIONS),
    "siglip_vision_model": _tower("SiglipVision", {**_SIZES, **_VISION}),
    "gemma3": _tower(
        "Gemma3",
        {
            "text_config": {**_GROUPED, **_TEXT, "head_dim": 8},
            "vision_config": {**_SIZES, **_VISION, "vision_use_head": False},
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
            **_VISION,
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
    "bloom": _decoder("Bloom", _SIZES, eager=True, **_FLOAT),
    "mpt": _decoder("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, eager=True, **_FLOAT),
    "gpt_neox": _decoder("GPTNeoX", {**_SIZES, "rope_parameters": _rope(0.5)}),
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
        "Falcon", {k: v for k, v in _SIZES.items() if k != "intermediate_size"} | {"ffn_hidden_size": 48}
    ),
    "smollm3": _decoder("SmolLM3", {**_GROUPED, "no_rope_layer_interval": 2}, **_RMS),
    "deepseek_v2": _decoder("DeepseekV2", {**_LATENT, "q_lora_rank": None}, **_LATENTS),
    "deepseek_v3": _decoder("DeepseekV3", {**_LATENT, **_CHOSEN_GROUPS, "num_key_value_heads": 4}, **_LATENTS),
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

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TINY_MODELS = (
    *(tiny(model_type) for model_type in _FAMILIES),
    tiny("vit", "no-qkv-bias", config={"qkv_bias": False}),
    tiny("dinov2", "swiglu", config={"use_swiglu_ffn": True}),
    tiny("albert", "inner", config={"num_hidden_groups": 1, "inner_group_num": 2}),
    tiny("clip", "unlike", config={"vision_config": {**_SIZES, **_VISION, "num_attention_heads": 8}}),
    tiny("t5", "gated", config={"d_kv": 12, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3}),
    tiny("t5", "encoder", config={"is_encoder_decoder": False}, base="T5EncoderModel", head="T5ForTokenClassification"),
    tiny("beit", "shared", config={"use_relative_position_bias": False, "use_shared_relative_position_bias": True}),
    tiny("beit", "absolute", config={"use_relative_position_bias": False, "use_absolute_position_embeddings": True}),
    tiny("swin", "no-qkv-bias", config={"qkv_bias": False}),
    tiny("bart", "unlike", config={"encoder_layers": 3, "decoder_layers": 1, "decoder_attention_heads": 8}),
    tiny("gpt_bigcode", "multi-head", config={"multi_query": False}),
    tiny("bert", "decoder", config={"is_decoder": True}, head="BertLMHeadModel", causal=True),
    tiny("opt", "no-bias", config={"enable_bias": False}),
    tiny("llama", "biases", config={"attention_bias": True}),
    tiny("llama", "head-dim", config={"head_dim": 12}),
    tiny("llama", "multi-head", config={"num_key_value_heads": None}),
    tiny("llama", "scaled", config={"rope_parameters": _LLAMA3, "max_position_embeddings": 64}),
    tiny("qwen2", "head-dim", config={"head_dim": 6}),
    tiny("gpt_neox", "no-bias", config={"attention_bias": False}),
    tiny("gpt_neox", "whole", config={"rope_parameters": _rope(1.0)}),
    tiny("gpt_neox", "scaled", config={"rope_parameters": _rope(0.5, "linear", factor=2.0)}),
    tiny("roformer", "rotary-value", config={"rotary_value": True}),
    tiny("gptj", "whole", config={"rotary_dim": 8}),
    tiny("qwen2_moe", "no-bias", config={"qkv_bias": False}),
    tiny("gemma", "head-dim", config={"head_dim": 12}),
    tiny("gemma2", "biases", config={"attention_bias": True}),
    tiny("phi", "whole", config={"rope_parameters": _rope(1.0)}),
    tiny("phi3", "partial", config={"rope_parameters": _rope(0.5)}),
    tiny("olmo", "biases", config={"attention_bias": True}),
    tiny("stablelm", "qk-norm", config={"qk_layernorm": True}),
    tiny("stablelm", "qk-norm-biases", config={"qk_layernorm": True, "use_qkv_bias": True}),
    tiny("stablelm", "biases", config={"use_qkv_bias": True, "use_parallel_residual": True}),
    tiny("starcoder2", "no-bias", config={"use_bias": False}),
    tiny("cohere", "biases", config={"attention_bias": True}),
    tiny("cohere", "qk-norm", config={"use_qk_norm": True}),
    tiny("falcon", "grouped", config={"new_decoder_architecture": True, "num_kv_heads": 2}),
    tiny("falcon", "multi-head", config={"multi_query": False, "bias": True}),
    tiny("falcon", "alibi", config={"alibi": True, "multi_query": False, "bias": True, "parallel_attn": False}),
    tiny("falcon", "alibi-shared", config={"alibi": True}),
    tiny("smollm3", "biases", config={"attention_bias": True}),
    tiny("deepseek_v2", "query-latent", config={"q_lora_rank": 14, "attention_bias": True, "mlp_bias": True}),
    tiny("deepseek_v2", "groups", config={**_CHOSEN_GROUPS, "topk_method": "group_limited_greedy"}),
    tiny(
        "deepseek_v3",
        "biases",
        config={"attention_bias": True, "rope_interleave": False, "n_group": 1, "norm_topk_prob": False},
    ),
    tiny("deepseek_v3", "dense", config={"first_k_dense_replace": 2, "q_lora_rank": None}),
    tiny("glm", "no-bias", config={"attention_bias": False}),
    tiny("granite", "biases", config={"attention_bias": True}),
    tiny("modernbert", "biases", config={"attention_bias": True}),
    tiny("dinov3_vit", "biases", config={"query_bias": False, "key_bias": True, "use_gated_mlp": True}),
    tiny("dinov3_vit", "no-bias", config={"query_bias": False, "value_bias": False, "proj_bias": False}),
    tiny("isobasin_vit", "absolute", config={"rotary": False, "heads_per_layer": [8, 4]}),
)
