"""What the attention modules of the tiny models compute, and how to watch them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from reference_attention import Tables
from safetensors import safe_open
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import build
from isobasin.architectures.description import Description
from isobasin.architectures.examples import EXAMPLES, tiny
from isobasin.architectures.registry import family
from isobasin.architectures.tiny import Single, TinyModel
from isobasin.architectures.view import View
from isobasin.symmetries.weights import AttentionWeights
from situations.forms import read_config

TOKENS = 7


def rotary_table(model: Any, layer: int) -> Tables:
    """Cosines and sines of a model's own table, one column per plane, whatever order its columns have.

    It may be complex, may have two equal columns for every plane, side by side or in two halves, and may be another one
    for every type of layer.
    """
    module = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    config = getattr(model.config, "text_config", model.config)
    of_layer = () if "rope_type" in config.rope_parameters else (config.layer_types[layer],)
    table = module(torch.zeros(1, dtype=torch.float64), torch.arange(TOKENS)[None], *of_layer)
    if isinstance(table, Tensor):
        return table[0].real, table[0].imag
    cos, sin = (x[0] for x in table)
    half = cos.shape[-1] // 2
    if torch.equal(sin[:, :half], sin[:, half:]):
        return cos[:, :half], sin[:, :half]
    return (cos[:, ::2], sin[:, ::2]) if torch.equal(sin[:, ::2], sin[:, 1::2]) else (cos, sin)


def latent_scores(config: dict[str, Any]) -> dict[str, float]:
    """Queries and keys are as wide as both of their parts; the norms of latents have an epsilon of their own."""
    return {"epsilon": 1e-6, "scale": (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5}


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
class Scored:
    """How a family's scores are computed, where that is not the usual way.

    The rotary tables of a layer are float32 in transformers, so they are taken from the model as they are. `scores`
    says by the configuration how they are scaled and capped, and how queries and keys are normalised, `bias` what is
    added to them where later positions are masked or not. `causal_in` names the stacks where later positions are
    masked, in models with several, and `beside` says how those are scored that come after these and are others.
    """

    tables: Callable[[Any, int], Tables] = rotary_table
    scores: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    bias: Callable[[AttentionWeights, bool], Tensor] | None = None
    causal_in: tuple[str, ...] | None = None
    beside: Mapping[str, Scored] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What an attention block was given and returned, `(tokens, width)` each; `memory` if it read another sequence."""

    hidden: Tensor
    memory: Tensor | None
    output: Tensor


def constants(**facts: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: facts


# Only of families that aren't as usual.
_SCORED = {
    "roformer": Scored(roformer_table),
    "t5": Scored(scores=constants(scale=1.0), bias=t5_biases, causal_in=("decoder",)),
    "mpnet": Scored(bias=mpnet_biases),
    "beit": Scored(bias=beit_biases),
    "swin": Scored(bias=swin_biases),
    "gpt_neo": Scored(scores=constants(scale=1.0)),
    "clip": Scored(causal_in=("text tower",)),
    **dict.fromkeys(("bart", "marian", "whisper"), Scored(causal_in=("decoder",))),
    "gptj": Scored(gptj_table),
    "gemma2": Scored(
        scores=lambda c: {"scale": c["query_pre_attn_scalar"] ** -0.5, "softcap": c["attn_logit_softcapping"]}
    ),
    **dict.fromkeys(("stablelm", "cohere", "olmo2"), Scored(scores=constants(epsilon=1e-5))),
    **dict.fromkeys(("qwen3", "qwen3_moe"), Scored(scores=constants(epsilon=1e-6))),
    "gemma3_text": Scored(scores=constants(epsilon=1e-6, scale=256**-0.5)),
    "gemma3": Scored(
        scores=constants(epsilon=1e-6, scale=256**-0.5),
        causal_in=("text tower",),
        beside={"vision tower": Scored()},
    ),
    "falcon": Scored(scores=falcon_scores),
    "granite": Scored(scores=lambda c: {"scale": c["attention_multiplier"]}),
    "dinov3_vit": Scored(dinov3_table),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), Scored(scores=latent_scores)),
    **dict.fromkeys(("bloom", "mpt"), Scored(bias=alibi)),
    "isobasin_vit": Scored(vit_table),
}


@dataclass(frozen=True)
class Case(TinyModel):
    """A tiny model with all that its attention is compared by."""

    @property
    def scored(self) -> Scored:
        return _SCORED.get(self.model_type, Scored())

    @property
    def tolerance(self) -> float:
        """That of one attention module."""
        rough = self.single in (Single.scores, Single.softmax, Single.latents)
        return 1e-5 if rough or any(block.group.norm for block in self.blocks()) else 1e-9

    def blocks(self) -> list[AttentionBlock]:
        """The attention blocks, by canonical names."""
        return family(self.model_type).blocks(build(self.model_type, self.config))

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


# What transformers doesn't only rename: one of two modules into which it splits what is stored, and the other one.
_SPLIT = {"weights_in": "up_proj", "weights_out": "down_proj"}


def modules(model: Any, blocks: Iterable[tuple[str, ...]]) -> Iterator[tuple[Any, ...]]:
    """The modules in memory that hold these tensors of blocks, by canonical names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    view = View.of(Description(json.loads(model.config.to_json_string()), shapes))
    for names in blocks:
        found = [view.stored(name).rpartition(".")[0].rpartition(".") for name in names]
        yield tuple(model.get_submodule(f"{parent}.{_SPLIT.get(own, own)}") for parent, _, own in found)


def kept(found: dict[int, Tensor], index: int) -> Callable[..., None]:
    """A hook that keeps a module's first input or first output; a copy, as some add to it in place."""

    def keep(_: Any, given: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        found.setdefault(index, (given[0] if output is None else output).clone())

    return keep


def observed(case: Case, model: Any) -> list[Run]:
    """Input and output of every attention block from a run of the model; the first run of a block that is shared."""
    asking: dict[int, Tensor] = {}
    asked: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    names: list[tuple[str, ...]] = []
    for block in case.blocks():
        readers = [reader.weight for reader in block.readers.values()]
        names.append((readers[0], readers[-1], block.output.weight))
    for index, (first, last, output) in enumerate(modules(model, names)):
        first.register_forward_pre_hook(kept(asking, index))
        last.register_forward_pre_hook(kept(asked, index))
        output.register_forward_hook(kept(outputs, index))
    with torch.no_grad():
        model(**case.inputs)
    assert len(asking) == len(outputs) == len(names)
    crossed = [not torch.equal(asking[i], asked[i]) for i in range(len(names))]
    return [Run(asking[i][0], asked[i][0] if crossed[i] else None, outputs[i][0]) for i in range(len(names))]
