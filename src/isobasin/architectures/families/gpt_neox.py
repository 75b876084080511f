"""GPT-NeoX: queries, keys and values fused head by head.

Rotary positions turn the first features of a head, in half order. `attention_bias` is about both modules of the
attention; `use_parallel_residual` is outside the blocks.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_feedforwards
from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import fused_heads, half_planes
from isobasin.architectures.stream import Readout

_ATTENTION = "layers.{layer}.attention"
PARTS = ("dense_h_to_4h", "dense_4h_to_h")


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-NeoX."""
    shape = sizes(config)
    projections = fused_heads(shape, f"{_ATTENTION}.query_key_value", f"{_ATTENTION}.dense", bias=config.attention_bias)
    planes = half_planes(rotated(config, shape.features, partial=True))
    return attention_blocks(layers(config), _ATTENTION, shape, projections, planes)


feedforwards = partial(linear_feedforwards, name="layers.{layer}.mlp", parts=PARTS)


# Both blocks may read the same sum, each through its own normalisation.
stream = partial(
    gpt2.stream,
    embeddings=(("embed_in.weight", 1),),
    readouts=(Readout("embed_out", tied=True), Readout("score"), Readout("classifier"), Readout("qa_outputs")),
    attention_norm="layers.{layer}.input_layernorm",
    feedforward_norm="layers.{layer}.post_attention_layernorm",
    final_norm="final_layer_norm",
)


FAMILY = Family("gpt_neox", ("gpt_neox.",), blocks, feedforwards, stream, ("attention.bias", "attention.masked_bias"))
