"""Tiny random transformers models of every supported family, with the variants that change the attention's group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobasin.testing.configurations import CHOSEN_GROUPS, FAMILIES, SIZES, VISION, rope

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
    usual = dict(FAMILIES[model_type])
    config = {**usual.pop("config"), **facts.pop("config", {})}
    return TinyModel(model_type, variant, config, **{**usual, **facts})


def variant(name: str) -> TinyModel:
    """The entry of `TINY_MODELS` that prints as `name`, such as "llama-biases"."""
    return {str(model): model for model in TINY_MODELS}[name]


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`."""
    return json.loads((folder / "config.json").read_text())


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TINY_MODELS = (
    *(tiny(model_type) for model_type in FAMILIES),
    tiny("vit", "no-qkv-bias", config={"qkv_bias": False}),
    tiny("dinov2", "swiglu", config={"use_swiglu_ffn": True}),
    tiny("albert", "inner", config={"num_hidden_groups": 1, "inner_group_num": 2}),
    tiny("clip", "unlike", config={"vision_config": {**SIZES, **VISION, "num_attention_heads": 8}}),
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
    tiny("gpt_neox", "whole", config={"rope_parameters": rope(1.0)}),
    tiny("gpt_neox", "scaled", config={"rope_parameters": rope(0.5, "linear", factor=2.0)}),
    tiny("roformer", "rotary-value", config={"rotary_value": True}),
    tiny("gptj", "whole", config={"rotary_dim": 8}),
    tiny("qwen2_moe", "no-bias", config={"qkv_bias": False}),
    tiny("gemma", "head-dim", config={"head_dim": 12}),
    tiny("gemma2", "biases", config={"attention_bias": True}),
    tiny("phi", "whole", config={"rope_parameters": rope(1.0)}),
    tiny("phi3", "partial", config={"rope_parameters": rope(0.5)}),
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
    tiny("deepseek_v2", "groups", config={**CHOSEN_GROUPS, "topk_method": "group_limited_greedy"}),
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
