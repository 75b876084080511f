"""Tiny random transformers models of every family, and what their attention modules compute."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from reference_attention import Tables
from safetensors import safe_open
from torch import Tensor

TOKENS = 7
_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
_VISION = {"image_size": 8, "patch_size": 4}


def rotary_module(model: Any) -> Tables:
    """The tables of a model with `rotary_emb`, one column per plane."""
    cos, sin = model.base_model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None])
    planes = cos.shape[-1] // 2
    return cos[0, :, :planes], sin[0, :, :planes]


def gptj_table(model: Any) -> Tables:
    sin, cos = model.base_model.h[0].attn.embed_positions[:TOKENS].chunk(2, dim=-1)
    return cos, sin


def roformer_table(model: Any) -> Tables:
    sin, cos = model.base_model.encoder.embed_positions.weight[:TOKENS].chunk(2, dim=-1)
    return cos, sin


@dataclass(frozen=True)
class Case:
    """One configuration of one family.

    `base` and `head` are class names; `attention` is the class whose input is compared, `output` the path inside
    it of the projection whose output is compared. Everything runs in float64. The rotary tables are float32 in
    transformers, so they are taken from the model as they are and `tolerance` needn't allow for them.
    """

    model_type: str
    variant: str
    config: dict[str, Any]
    base: str
    head: str
    attention: str
    output: str
    causal: bool = False
    tables: Callable[[Any], Tables] | None = None
    tolerance: float = 1e-9

    def __str__(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type

    def model(self, seed: int = 0, *, base: bool = False) -> Any:
        """A model with every parameter random: the initialisers would set biases to zero."""
        architecture = getattr(transformers, self.base if base else self.head)
        # The "eager" attention of some families computes its softmax in float32.
        config = architecture.config_class(**self.config, attn_implementation="sdpa" if self.sdpa else "eager")
        model = architecture(config).double().eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:  # RoFormer's rotary table is a frozen parameter
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(0.4 * random)
        return model

    @property
    def sdpa(self) -> bool:
        return self.model_type not in ("gptj", "roformer")

    @property
    def inputs(self) -> dict[str, Tensor]:
        if self.model_type in ("vit", "deit"):
            generator = torch.Generator().manual_seed(1)
            return {"pixel_values": torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64)}
        return {"input_ids": torch.arange(3, 3 + TOKENS)[None] * 5 % 50}


def case(model_type: str, variant: str = "", /, **facts: Any) -> Case:
    """A case of a known family: its usual facts and `config` changes."""
    usual = dict(_FAMILIES[model_type])
    config = {**usual.pop("config"), **facts.pop("config", {})}
    return Case(model_type, variant, config, **{**usual, **facts})


def _encoder(name: str, head: str = "ForMaskedLM", **facts: Any) -> dict[str, Any]:
    text = {**_SIZES, **_TEXT, "max_position_embeddings": 16}
    names = {"base": f"{name}Model", "head": f"{name}{head}", "attention": f"{name}Attention"}
    return {"config": text, **names, "output": "output.dense", **facts}


def _decoder(name: str, output: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    names = {"base": f"{name}Model", "head": f"{name}ForCausalLM", "attention": f"{name}Attention"}
    return {"config": {**config, **_TEXT}, **names, "output": output, "causal": True, **facts}


def _vision(name: str) -> dict[str, Any]:
    vision = {"config": {**_SIZES, **_VISION}, "output": "o_proj"}
    return {**_encoder(name, "ForImageClassification"), **vision}


_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_FAMILIES: dict[str, dict[str, Any]] = {
    "vit": _vision("ViT"),
    "deit": _vision("DeiT"),
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta"),
    "roformer": _encoder("RoFormer", tables=roformer_table),
    "distilbert": {
        **_encoder("DistilBert", output="out_lin", attention="DistilBertSelfAttention"),
        "config": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, **_TEXT},
    },
    "gpt2": _decoder("GPT2", "c_proj", _GPT, head="GPT2LMHeadModel"),
    "opt": _decoder("OPT", "out_proj", {k: v for k, v in _SIZES.items() if k != "intermediate_size"} | {"ffn_dim": 48}),
    "llama": _decoder("Llama", "o_proj", _GROUPED, tables=rotary_module),
    "mistral": _decoder("Mistral", "o_proj", _GROUPED, tables=rotary_module),
    "qwen2": _decoder("Qwen2", "o_proj", _GROUPED, tables=rotary_module),
    "gpt_neox": _decoder(
        "GPTNeoX",
        "dense",
        {**_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        tables=rotary_module,
    ),
    # GPT-J casts queries and keys to float32 before their product.
    "gptj": _decoder("GPTJ", "out_proj", {**_GPT, "rotary_dim": 4}, tables=gptj_table, tolerance=1e-5),
}

_WHOLE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = [
    *(case(model_type) for model_type in _FAMILIES),
    case("vit", "no-qkv-bias", config={"qkv_bias": False}),
    case("bert", "decoder", config={"is_decoder": True}, head="BertLMHeadModel", causal=True),
    case("opt", "no-bias", config={"enable_bias": False}),
    case("llama", "biases", config={"attention_bias": True}),
    case("llama", "head-dim", config={"head_dim": 12}),
    case("llama", "multi-head", config={"num_key_value_heads": None}),
    case("llama", "scaled", config={"rope_parameters": _LLAMA3, "max_position_embeddings": 64}),
    case("qwen2", "head-dim", config={"head_dim": 6}),
    case("gpt_neox", "no-bias", config={"attention_bias": False}),
    case("gpt_neox", "whole", config={"rope_parameters": _WHOLE}),
    case("gpt_neox", "scaled", config={"rope_parameters": _LINEAR}),
    case("roformer", "rotary-value", config={"rotary_value": True}),
    case("gptj", "whole", config={"rotary_dim": 8}),
]


def save(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Save as a checkpoint; its configuration, shapes and tensors as they are on disk."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in tensors}
    return config, shapes, tensors


def observed(case: Case, model: Any) -> list[tuple[Tensor, Tensor]]:
    """Input and output of the attention of every layer, `(tokens, width)` each, from a run of the model."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])[0])

    def after(_: Any, args: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output[0])

    for module in [m for m in model.modules() if type(m).__name__ == case.attention]:
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.get_submodule(case.output).register_forward_hook(after)
    with torch.no_grad():
        model(**case.inputs)
    assert len(inputs) == len(outputs) == 2
    return list(zip(inputs, outputs, strict=True))
