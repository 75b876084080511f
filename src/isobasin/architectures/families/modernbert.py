"""ModernBERT: queries, keys and values fused, gate and up fused, all features of a head rotating in half order.

Local and global layers rotate at their own frequencies and differ in the mask. `attention_bias` is about both modules
of the attention, `mlp_bias` about both of the feed-forward block.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, feedforward_blocks
from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_gate, fused_rows, half_planes
from isobasin.architectures.stream import Readout, StreamFacts

_ATTENTION = "layers.{layer}.attn"
_FEEDFORWARD = "layers.{layer}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a ModernBERT."""
    shape = sizes(config)
    projections = fused_rows(shape, f"{_ATTENTION}.Wqkv", f"{_ATTENTION}.Wo", bias=config.attention_bias)
    planes = half_planes(rotated(config, shape.features, by_layer_type=True))
    return attention_blocks(layers(config), _ATTENTION, shape, projections, planes)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a ModernBERT."""
    up, down = f"{_FEEDFORWARD}.Wi", f"{_FEEDFORWARD}.Wo"
    projections = fused_gate(config.hidden_size, config.intermediate_size, up, down, bias=config.mlp_bias)
    return feedforward_blocks(layers(config), _FEEDFORWARD, projections, config.hidden_activation)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a ModernBERT, whose first attention reads the normalised embeddings as they are."""
    return StreamFacts(
        embeddings=(("embeddings.tok_embeddings.weight", 1),),
        readouts=(Readout("head.dense", transform="head.norm", then=("decoder", "classifier")),),
        attention_norm="layers.{layer}.attn_norm",
        feedforward_norm="layers.{layer}.mlp_norm",
        final_norm="final_norm",
        embedding_norm="embeddings.norm",
        absent=("layers.0.attn_norm",),
        outside=("decoder.bias", "classifier.bias"),
    )


FAMILY = Family("modernbert", ("model.",), blocks, feedforwards, stream)
