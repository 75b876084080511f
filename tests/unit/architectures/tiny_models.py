"""What the attention modules of the tiny models compute, and how to watch them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from reference_attention import Tables
from safetensors import safe_open
from torch import Tensor

from isobasin.architectures.examples import EXAMPLES, tiny
from isobasin.architectures.tiny import TinyModel
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.forms import read_config

TOKENS = 7


def rotary_module(model: Any, layer: int) -> Tables:
    """The tables of a model with `rotary_emb`, one column per plane, in half order."""
    cos, sin = model.base_model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None])
    planes = cos.shape[-1] // 2
    return cos[0, :, :planes], sin[0, :, :planes]


def interleaved_module(model: Any, layer: int) -> Tables:
    """The same in interleaved order."""
    cos, sin = model.base_model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None])
    return cos[0, :, ::2], sin[0, :, ::2]


def gpt_oss_table(model: Any, layer: int) -> Tables:
    """One column per plane already."""
    cos, sin = model.base_model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None])
    return cos[0], sin[0]


def deepseek_table(model: Any, layer: int) -> Tables:
    """Complex numbers, one for each plane."""
    turns = model.base_model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None])[0]
    return turns.real, turns.imag


def latent_scores(config: dict[str, Any]) -> dict[str, float]:
    """Queries and keys are as wide as both of their parts; the norms of latents have an epsilon of their own."""
    return {"epsilon": 1e-6, "scale": (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5}


def modernbert_table(model: Any, layer: int) -> Tables:
    """Local and global layers have tables of their own."""
    x, positions = torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None]
    cos, sin = model.base_model.rotary_emb(x, positions, model.config.layer_types[layer])
    planes = cos.shape[-1] // 2
    return cos[0, :, :planes], sin[0, :, :planes]


def gemma3_table(model: Any, layer: int) -> Tables:
    """The text model's."""
    return modernbert_table(model.base_model.language_model, layer)


def dinov3_table(model: Any, layer: int) -> Tables:
    """A class and two register tokens that don't turn, then 4 patches; 4 planes in half order."""
    cos, sin = model.rope_embeddings(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    still = torch.zeros(3, 4, dtype=torch.float64)
    return torch.cat((still.cos(), cos[:, :4])), torch.cat((still, sin[:, :4]))


def gptj_table(model: Any, layer: int) -> Tables:
    sin, cos = model.base_model.h[layer].attn.embed_positions[:TOKENS].chunk(2, dim=-1)
    return cos, sin


def roformer_table(model: Any, layer: int) -> Tables:
    sin, cos = model.base_model.encoder.embed_positions.weight[:TOKENS].chunk(2, dim=-1)
    return cos, sin


def vit_table(model: Any, layer: int) -> Tables:
    """Positions count the class token, of 4 patches; 4 planes in half order."""
    angles = torch.arange(5, dtype=torch.float64)[:, None] * 1e4 ** -(torch.arange(4, dtype=torch.float64) / 4)
    return angles.cos(), angles.sin()


def alibi(weights: AttentionWeights | None, causal: bool) -> Tensor:
    """ALiBi of 4 heads, by the key's position alone, which softmax doesn't tell from the distance."""
    slopes = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625], dtype=torch.float64)
    return slopes[:, None, None, None] * torch.arange(TOKENS, dtype=torch.float64)


def falcon_scores(config: dict[str, Any]) -> dict[str, Any]:
    """Falcon divides slopes as it does scores, by the root of 8 features."""
    if "alibi" not in config:
        return {}
    heads = (4, 1) if config.get("multi_query") is False else (1, 4)
    return {"bias": alibi(None, True).view(*heads, 1, TOKENS) / 8**0.5}


def by_distance(weights: AttentionWeights, backward: list[int], forward: list[int]) -> Tensor:
    """A table's biases, by the entries of keys so many tokens before the query, and after it."""
    tokens = len(backward)
    entries = [[backward[q - k] if k <= q else forward[k - q - 1] for k in range(tokens)] for q in range(tokens)]
    return weights.table[..., entries]


def t5_biases(weights: AttentionWeights, causal: bool) -> Tensor:
    """8 buckets: 5 of them for the 5 tokens of a decoder, 4 in either direction for the 7 of an encoder."""
    if weights.table is None:
        return torch.zeros(())
    if causal:
        return by_distance(weights, [0, 1, 2, 3, 4], [0] * 4)
    return by_distance(weights, [0, 1, 2, 2, 3, 3, 3], [5, 6, 6, 7, 7, 7])


def mpnet_biases(weights: AttentionWeights, causal: bool) -> Tensor:
    """32 buckets, of which near tokens have one each."""
    return by_distance(weights, list(range(7)), list(range(17, 23)))


def patches() -> list[list[int]]:
    """The entry of every pair of 2 × 2 patches in rows of 3, one for each distance of columns."""
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    return [[3 * (a - c + 1) + b - d + 1 for c, d in places] for a, b in places]


def swin_biases(weights: AttentionWeights, causal: bool) -> Tensor:
    return weights.table[..., patches()]


def beit_biases(weights: AttentionWeights, causal: bool) -> Tensor:
    """The class token first: entry 9 from it to patches, 10 from them to it, 11 to itself."""
    if weights.table is None:
        return torch.zeros(())
    return weights.table[..., [[11, 9, 9, 9, 9], *([10, *row] for row in patches())]]


@dataclass(frozen=True)
class Watched:
    """Where a family's attention is watched.

    `attention` is the class whose input is compared, `output` the path inside it of the projection whose output is
    compared. The rotary tables of a layer are float32 in transformers, so they are taken from the model as they are and
    `tolerance` needn't allow for them. `scores` says by the configuration how they are scaled and capped, and how
    queries and keys are normalised, `bias` what is added to them where later positions are masked or not. `causal_in`
    names the stacks where later positions are masked, in models with several. `beside` says how stacks are watched that
    come after these and have other classes.
    """

    attention: str
    output: str
    tables: Callable[[Any, int], Tables] | None = None
    tolerance: float = 1e-9
    scores: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    bias: Callable[[AttentionWeights, bool], Tensor] | None = None
    causal_in: tuple[str, ...] | None = None
    beside: Mapping[str, Watched] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What an attention block was given and returned, `(tokens, width)` each; `memory` if it read another sequence."""

    hidden: Tensor
    memory: Tensor | None
    output: Tensor


_WATCHED = {
    "vit": Watched("ViTAttention", "o_proj"),
    "deit": Watched("DeiTAttention", "o_proj"),
    "bert": Watched("BertAttention", "output.dense"),
    "roberta": Watched("RobertaAttention", "output.dense"),
    "roformer": Watched("RoFormerAttention", "output.dense", roformer_table),
    "electra": Watched("ElectraAttention", "output.dense"),
    "xlm-roberta": Watched("XLMRobertaAttention", "output.dense"),
    "albert": Watched("AlbertAttention", "dense"),
    "dinov2": Watched("Dinov2Attention", "o_proj"),
    "t5": Watched("T5Attention", "o", scores=lambda c: {"scale": 1.0}, bias=t5_biases, causal_in=("decoder",)),
    "mpnet": Watched("MPNetSelfAttention", "o", bias=mpnet_biases),
    "beit": Watched("BeitAttention", "o_proj", bias=beit_biases),
    "swin": Watched("SwinAttention", "o_proj", bias=swin_biases),
    "gpt_bigcode": Watched("GPTBigCodeAttention", "c_proj"),
    # Like GPT-J it casts queries and keys to float32 before their product.
    "gpt_neo": Watched("GPTNeoSelfAttention", "out_proj", None, 1e-5, scores=lambda c: {"scale": 1.0}),
    "clip": Watched("CLIPAttention", "out_proj", causal_in=("text tower",)),
    **dict.fromkeys(("clip_text_model", "clip_vision_model"), Watched("CLIPAttention", "out_proj")),
    **dict.fromkeys(("siglip", "siglip_text_model", "siglip_vision_model"), Watched("SiglipAttention", "out_proj")),
    "bart": Watched("BartAttention", "out_proj", causal_in=("decoder",)),
    "marian": Watched("MarianAttention", "out_proj", causal_in=("decoder",)),
    "whisper": Watched("WhisperAttention", "out_proj", causal_in=("decoder",)),
    "distilbert": Watched("DistilBertSelfAttention", "out_lin"),
    "gpt2": Watched("GPT2Attention", "c_proj"),
    "opt": Watched("OPTAttention", "out_proj"),
    "llama": Watched("LlamaAttention", "o_proj", rotary_module),
    "mistral": Watched("MistralAttention", "o_proj", rotary_module),
    "qwen2": Watched("Qwen2Attention", "o_proj", rotary_module),
    "gpt_neox": Watched("GPTNeoXAttention", "dense", rotary_module),
    # GPT-J casts queries and keys to float32 before their product.
    "gptj": Watched("GPTJAttention", "out_proj", gptj_table, 1e-5),
    "mixtral": Watched("MixtralAttention", "o_proj", rotary_module),
    "qwen2_moe": Watched("Qwen2MoeAttention", "o_proj", rotary_module),
    "gemma": Watched("GemmaAttention", "o_proj", rotary_module),
    # Its softmax is float32.
    "gemma2": Watched(
        "Gemma2Attention",
        "o_proj",
        rotary_module,
        1e-5,
        lambda c: {"scale": c["query_pre_attn_scalar"] ** -0.5, "softcap": c["attn_logit_softcapping"]},
    ),
    "phi": Watched("PhiAttention", "dense", rotary_module),
    "phi3": Watched("Phi3Attention", "o_proj", rotary_module),
    "olmo": Watched("OlmoAttention", "o_proj", rotary_module),
    "stablelm": Watched("StableLmAttention", "o_proj", rotary_module, scores=lambda c: {"epsilon": 1e-5}),
    "starcoder2": Watched("Starcoder2Attention", "o_proj", rotary_module),
    # Cohere and ModernBERT cast queries and keys to float32 too.
    "cohere": Watched("CohereAttention", "o_proj", interleaved_module, 1e-5, lambda c: {"epsilon": 1e-5}),
    "falcon": Watched("FalconAttention", "dense", rotary_module, scores=falcon_scores),
    "smollm3": Watched("SmolLM3Attention", "o_proj", rotary_module),
    "glm": Watched("GlmAttention", "o_proj", rotary_module),
    "granite": Watched(
        "GraniteAttention", "o_proj", rotary_module, scores=lambda c: {"scale": c["attention_multiplier"]}
    ),
    "modernbert": Watched("ModernBertAttention", "Wo", modernbert_table, 1e-5),
    "dinov3_vit": Watched("DINOv3ViTAttention", "o_proj", dinov3_table),
    # RMSNorm is float32.
    "qwen3": Watched("Qwen3Attention", "o_proj", rotary_module, 1e-5, lambda c: {"epsilon": 1e-6}),
    "qwen3_moe": Watched("Qwen3MoeAttention", "o_proj", rotary_module, 1e-5, lambda c: {"epsilon": 1e-6}),
    "olmo2": Watched("Olmo2Attention", "o_proj", rotary_module, 1e-5, lambda c: {"epsilon": 1e-5}),
    "gemma3_text": Watched(
        "Gemma3Attention", "o_proj", modernbert_table, 1e-5, lambda c: {"epsilon": 1e-6, "scale": 256**-0.5}
    ),
    "gemma3": Watched(
        "Gemma3Attention",
        "o_proj",
        gemma3_table,
        1e-5,
        lambda c: {"epsilon": 1e-6, "scale": 256**-0.5},
        causal_in=("text tower",),
        beside={"vision tower": Watched("SiglipAttention", "out_proj")},
    ),
    "deepseek_v2": Watched("DeepseekV2Attention", "o_proj", deepseek_table, 1e-5, latent_scores),
    "deepseek_v3": Watched("DeepseekV3Attention", "o_proj", rotary_module, 1e-5, latent_scores),
    "gpt_oss": Watched("GptOssAttention", "o_proj", gpt_oss_table),
    # Softmax is float32.
    "bloom": Watched("BloomAttention", "dense", None, 1e-5, bias=alibi),
    "mpt": Watched("MptAttention", "out_proj", None, 1e-5, bias=alibi),
    "isobasin_vit": Watched("ViTAttention", "o_proj", vit_table),
    "isobasin_bert": Watched("BertAttention", "output.dense"),
    "isobasin_gpt2": Watched("GPT2Attention", "c_proj"),
}


@dataclass(frozen=True)
class Case(TinyModel):
    """A tiny model with all that its attention is compared by."""

    @property
    def watched(self) -> Watched:
        return _WATCHED[self.model_type]

    @property
    def tolerance(self) -> float:
        """That of one attention module."""
        return self.watched.tolerance

    @property
    def tables(self) -> Callable[[Any, int], Tables] | None:
        return self.watched.tables

    def model(self, seed: int = 0, *, base: bool = False) -> Any:
        return self.build(seed, base=base)

    @property
    def inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.arange(3, 3 + TOKENS)[None] * 5 % 50
        image = torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64)
        if "image_size" in self.config:
            return {"pixel_values": image}
        tokens[:, : self.config.get("mm_tokens_per_image", 0)] = self.config.get("image_token_index", 0)
        if "text_config" in self.config:
            return {"input_ids": tokens, "pixel_values": image}
        if "num_mel_bins" in self.config:
            sound = torch.randn(1, 8, 20, generator=generator, dtype=torch.float64)
            return {"input_features": sound, "decoder_input_ids": tokens}
        decodes = self.config.get("is_encoder_decoder", "decoder_start_token_id" in self.config)
        decoder = {"decoder_input_ids": tokens[:, 2:]} if decodes else {}
        return {"input_ids": tokens, **decoder}


def _case(model: TinyModel) -> Case:
    return Case(**{f.name: getattr(model, f.name) for f in fields(TinyModel)})


def case(model_type: str, variant: str = "", /, **facts: Any) -> Case:
    """A case of a known family: its usual facts and `config` changes."""
    return _case(tiny(model_type, variant, **facts))


CASES = [_case(model) for model in EXAMPLES]


def save(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Save as a checkpoint; its configuration, shapes and tensors as they are on disk."""
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in tensors}
    return read_config(folder), shapes, tensors


def watched(model: Any, class_name: str) -> list[Any]:
    """The modules of a class, stack by stack: those that are called the same but for numbers follow each other."""
    found = {name: module for name, module in model.named_modules() if type(module).__name__ == class_name}
    stacks = list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in found))
    return [found[name] for name in sorted(found, key=lambda name: stacks.index(re.sub(r"\d+", "*", name)))]


def observed(case: Case, model: Any) -> list[Run]:
    """Input and output of every attention block from a run of the model; the first run of a block that is shared."""
    inputs: dict[int, tuple[Tensor, Tensor | None]] = {}
    outputs: dict[int, Tensor] = {}

    def watch(index: int, module: Any, output: str) -> None:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, memory = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], None
            if kwargs.get("key_value_states") is not None:
                memory = kwargs["key_value_states"][0]
            inputs.setdefault(index, (hidden[0], memory))

        def after(_: Any, args: tuple[Any, ...], output: Tensor) -> None:
            outputs.setdefault(index, output[0])

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.get_submodule(output).register_forward_hook(after)

    kinds = (case.watched, *case.watched.beside.values())
    modules = [(module, kind.output) for kind in kinds for module in watched(model, kind.attention)]
    for index, (module, output) in enumerate(modules):
        watch(index, module, output)
    with torch.no_grad():
        model(**case.inputs)
    assert len(inputs) == len(outputs) == len(modules)
    return [Run(*inputs[index], outputs[index]) for index in range(len(modules))]
