"""Phi-3: Llama with queries, keys and values fused, gate and up fused, and no biases.

All features of a head rotate or the first of them, in half order. Sliding windows only change the mask.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import fused_gate, fused_rows, half_planes
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Phi-3."""
    shape = llama.decoder_sizes(config)
    projections = fused_rows(shape, f"{llama.ATTENTION}.qkv_proj", f"{llama.ATTENTION}.o_proj", bias=False)
    planes = half_planes(rotated(config, shape.features, partial=True))
    return attention_sites(layers(config), llama.ATTENTION, projections, attention_group(shape, projections, planes))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Phi-3."""
    up, down = f"{llama.FEEDFORWARD}.gate_up_proj", f"{llama.FEEDFORWARD}.down_proj"
    projections = fused_gate(config.hidden_size, config.intermediate_size, up, down, bias=False)
    return feedforward_sites(layers(config), llama.FEEDFORWARD, projections, config.hidden_act)


FAMILY = llama.like(model_type="phi3", blocks=blocks, feedforwards=feedforwards)
