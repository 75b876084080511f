"""Llama: grouped queries, and rotary positions on all features in half order.

`attention_bias` is about all four projections, `mlp_bias` about all three of the gated feed-forward block.
"""

from collections.abc import Mapping
from typing import Any

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import Plane, Sizes, gains, half_planes, linears, separate, sinks
from isobasin.architectures.projection import Gains
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm

ATTENTION = "layers.{layer}.self_attn"
_FEEDFORWARD = "layers.{layer}.mlp"


def decoder_sizes(config: Config) -> Sizes:
    """The sizes of the attention blocks of a decoder of Llama's kind."""
    return sizes(config, groups=config.num_key_value_heads, features=getattr(config, "head_dim", None))


def decoder_blocks(
    config: Config,
    *,
    bias: bool,
    output_bias: bool,
    planes: tuple[Plane, ...] | None = None,
    output: str = "o_proj",
    norm: QueryKeyNorm | None = None,
    gain_offset: float = 0.0,
    sink: bool = False,
    own_gains: Mapping[str, Gains] | None = None,
) -> list[AttentionSite]:
    """The attention blocks of a decoder of Llama's kind.

    Args:
        config: The configuration.
        bias: Whether queries, keys and values have biases.
        output_bias: Whether the output has one.
        planes: Features that rotate together; by default all of a head in half order.
        output: What the output projection is called.
        norm: How queries and keys are normalised.
        gain_offset: What is added to their gains.
        sink: Whether heads have scores of no token.
        own_gains: Where those gains lie if not in modules q_norm and k_norm, as vectors.
    """
    shape = decoder_sizes(config)
    projections = separate(
        shape,
        query=f"{ATTENTION}.q_proj",
        key=f"{ATTENTION}.k_proj",
        value=f"{ATTENTION}.v_proj",
        output=f"{ATTENTION}.{output}",
        bias=bias,
        output_bias=output_bias,
    )
    planes = half_planes(rotated(config, shape.features)) if planes is None else planes
    group = attention_group(shape, projections, planes, norm=norm, sink=sink)
    others = dict(own_gains or {})
    if norm is not None and not others:
        for role, heads in (("query", shape.heads), ("key", shape.groups)):
            own = heads if norm is QueryKeyNorm.full else 1
            others[f"{role}_gain"] = gains(f"{ATTENTION}.{role[0]}_norm.weight", shape.features, own)
    if sink:
        others["sink"] = sinks(f"{ATTENTION}.sinks", shape.heads)
    return attention_sites(layers(config), ATTENTION, projections, group, gain_offset=gain_offset, **others)


def blocks(config: Config, **others: Any) -> list[AttentionSite]:
    """The attention blocks of a Llama, or of one that differs in what else `decoder_blocks` takes."""
    return decoder_blocks(config, bias=config.attention_bias, output_bias=config.attention_bias, **others)


def decoder_feedforwards(config: Config, *, bias: bool, activation: str | None = None) -> list[FeedForwardSite]:
    """The feed-forward blocks of a decoder of Llama's kind; the activation is `hidden_act` if none is given."""
    up, gate, down = (f"{_FEEDFORWARD}.{name}_proj" for name in ("up", "gate", "down"))
    projections = linears(config.hidden_size, config.intermediate_size, up, down, gate, bias=bias)
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, activation or config.hidden_act)


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Llama."""
    return decoder_feedforwards(config, bias=config.mlp_bias)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a decoder of Llama's kind."""
    return StreamFacts(
        embeddings=(("embed_tokens.weight", 1),),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
        attention_norm="layers.{layer}.input_layernorm",
        feedforward_norm="layers.{layer}.post_attention_layernorm",
        final_norm="norm",
        mean=False,
    )


# Question answering puts "transformer." before the names, all other heads "model.".
PREFIXES = ("model.", "transformer.")

FAMILY = Family("llama", PREFIXES, blocks, feedforwards, stream)
