"""Llama, and what all decoders of its kind have in common: their files say in what they differ from it.

Grouped queries, and rotary positions on all features in half order. `attention_bias` is about all four projections,
`mlp_bias` about all three of the gated feed-forward block.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.configuration import Config, rotated, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import Plane, Sizes, gains, half_planes, interleaved_planes, sinks
from isobasin.architectures.projection import Gains
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm

ATTENTION = "layers.{layer}.self_attn"
FEEDFORWARD = "layers.{layer}.mlp"


def decoder_sizes(config: Config) -> Sizes:
    """The sizes of the attention blocks of a decoder of Llama's kind."""
    return sizes(config, kv_heads=config.num_key_value_heads, features=getattr(config, "head_dim", None))


def blocks(
    config: Config,
    *,
    bias: bool | str = "attention_bias",
    output_bias: bool | str | None = None,
    interleaved: bool = False,
    partial: bool = False,
    by_layer_type: bool = False,
    rotates: Sequence[object] | None = None,
    output: str = "o_proj",
    norm: QueryKeyNorm | None = None,
    own_gains: Callable[[str, int, int], Gains] | None = None,
    gain_offset: float = 0.0,
    sink: bool = False,
) -> list[AttentionBlock]:
    """The attention blocks of a decoder of Llama's kind.

    Args:
        config: The configuration.
        bias: Whether queries, keys and values have biases, or which entry says so.
        output_bias: Likewise for the output; by default it has one where they have.
        interleaved: Whether features rotate in interleaved order, not in half order.
        partial: As in `rotated`.
        by_layer_type: As in `rotated`.
        rotates: Which layers rotate; by default all.
        output: What the output projection is called.
        norm: How queries and keys are normalised.
        own_gains: Where the gains of queries ("q") or keys ("k") lie, of so many heads and features, if not in modules
            q_norm and k_norm, as vectors.
        gain_offset: What is added to those gains.
        sink: Whether heads have scores of no token.
    """
    shape = decoder_sizes(config)
    order = interleaved_planes if interleaved else half_planes
    planes = order(rotated(config, shape.features, partial=partial, by_layer_type=by_layer_type))
    others: dict[str, Any] = {"gain_offset": gain_offset}
    others |= {"sink": sinks(f"{ATTENTION}.sinks", shape.heads)} if sink else {}
    if norm is not None:
        own = own_gains or (
            lambda letter, heads, n: gains(
                f"{ATTENTION}.{letter}_norm.weight", n, heads if norm is QueryKeyNorm.full else 1
            )
        )
        others |= {
            "query_gain": own("q", shape.heads, shape.features),
            "key_gain": own("k", shape.kv_heads, shape.features),
        }

    def turned(planes: tuple[Plane, ...]) -> list[AttentionBlock]:
        facts: dict[str, Any] = {"shape": shape, "norm": norm, "sink": sink, "others": others}
        parts = "q_proj", "k_proj", "v_proj", output
        return separate_attention(config, ATTENTION, parts, planes, bias=bias, output_bias=output_bias, **facts)

    if rotates is None:
        return turned(planes)
    return [one if turns else other for one, other, turns in zip(turned(planes), turned(()), rotates, strict=True)]


feedforwards = functools.partial(
    linear_feedforwards, name=FEEDFORWARD, parts=("up_proj", "down_proj", "gate_proj"), bias="mlp_bias"
)
"""The feed-forward blocks of a decoder of Llama's kind."""


def stream(config: Config, *, parallel: bool = False, **others: Any) -> StreamFacts:
    """The residual stream of a decoder of Llama's kind.

    Args:
        config: The configuration.
        parallel: Whether one normalisation serves both blocks of a layer.
        others: In what else it differs, as `StreamFacts` names it.
    """
    attention = "layers.{layer}.input_layernorm"
    usual = StreamFacts(
        embeddings=(("embed_tokens.weight", 1),),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
        attention_norm=attention,
        feedforward_norm=attention if parallel else "layers.{layer}.post_attention_layernorm",
        final_norm="norm",
        mean=False,
    )
    return replace(usual, **others)


# Question answering puts "transformer." before the names, all other heads "model.".
FAMILY = Family("llama", ("model.", "transformer."), blocks, feedforwards, stream)
like = functools.partial(replace, FAMILY)
"""A family of Llama's kind, which states in what it differs."""
