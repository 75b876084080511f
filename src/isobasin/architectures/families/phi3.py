"""Phi-3: Llama with queries, keys and values fused, gate and up fused, and no biases.

All features of a head rotate or the first of them, in half order. Sliding windows only change the mask.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, feedforward_blocks
from isobasin.architectures.configuration import Config, layers, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_gate, fused_rows, half_planes


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Phi-3."""
    shape = llama.decoder_sizes(config)
    projections = fused_rows(shape, f"{llama.ATTENTION}.qkv_proj", f"{llama.ATTENTION}.o_proj", bias=False)
    planes = half_planes(rotated(config, shape.features, partial=True))
    return attention_blocks(layers(config), llama.ATTENTION, shape, projections, planes)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a Phi-3."""
    up, down = f"{llama.FEEDFORWARD}.gate_up_proj", f"{llama.FEEDFORWARD}.down_proj"
    projections = fused_gate(config.hidden_size, config.intermediate_size, up, down, bias=False)
    return feedforward_blocks(layers(config), llama.FEEDFORWARD, projections, config.hidden_act)


FAMILY = llama.like(model_type="phi3", blocks=blocks, feedforwards=feedforwards)
