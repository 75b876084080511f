"""BLOOM: queries, keys and values fused head by head, and ALiBi, whose slope ties every head to its place."""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_blocks
from isobasin.architectures.configuration import Config, layers, refuse, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_heads
from isobasin.architectures.stream import StreamFacts

_ATTENTION = "h.{layer}.self_attention"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a BLOOM."""
    shape = sizes(config)
    projections = fused_heads(shape, f"{_ATTENTION}.query_key_value", f"{_ATTENTION}.dense", bias=True)
    return attention_blocks(layers(config), _ATTENTION, shape, projections, permuted=False)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a BLOOM."""
    width, names = config.hidden_size, ("dense_h_to_4h", "dense_4h_to_h")
    return linear_blocks(layers(config), _FEEDFORWARD, width, 4 * width, "gelu_new", *names, bias=True)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a BLOOM, whose embeddings are normalised."""
    refuse(config, "apply_residual_connection_post_layernorm", "that residual stream is not supported")
    return gpt2.stream(
        config,
        embeddings=(("word_embeddings.weight", 1),),
        attention_norm="h.{layer}.input_layernorm",
        feedforward_norm="h.{layer}.post_attention_layernorm",
        embedding_norm="word_embeddings_layernorm",
    )


FAMILY = Family("bloom", ("transformer.",), blocks, feedforwards=feedforwards, stream=stream)
