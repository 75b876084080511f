"""OPT: separate projections; `enable_bias` is about all of them."""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import separate
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.errors import ArchitectureError

_LAYER = "decoder.layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attn"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of an OPT."""
    shape = sizes(config)
    names = (f"{_ATTENTION}.{part}_proj" for part in ("q", "k", "v", "out"))
    projections = separate(shape, *names, bias=config.enable_bias, output_bias=config.enable_bias)
    return attention_blocks(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of an OPT."""
    sizes, activation = (config.hidden_size, config.ffn_dim), config.activation_function
    return linear_blocks(layers(config), _LAYER, *sizes, activation, "fc1", "fc2", bias=config.enable_bias)


def stream(config: Config) -> StreamFacts:
    """The residual stream of an OPT, normalised before the blocks or after the sums (`do_layer_norm_before`)."""
    before = config.do_layer_norm_before
    if config.word_embed_proj_dim != config.hidden_size:
        raise ArchitectureError("word_embed_proj_dim differs from hidden_size: that residual stream is not supported")
    if not config.layer_norm_elementwise_affine or (before and config._remove_final_layer_norm):
        raise ArchitectureError("a residual stream without gains or without a last normalisation is not supported")
    return StreamFacts(
        embeddings=(("decoder.embed_tokens.weight", 1), ("decoder.embed_positions.weight", 1)),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
        attention_norm=f"{_LAYER}.self_attn_layer_norm",
        feedforward_norm=f"{_LAYER}.final_layer_norm",
        final_norm="decoder.final_layer_norm" if before else None,
        post=not before,
    )


FAMILY = Family("opt", ("model.",), blocks, feedforwards=feedforwards, stream=stream)
