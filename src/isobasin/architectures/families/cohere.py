"""Cohere: the blocks of Llama with all features of a head rotating in interleaved order, and a LayerNorm without bias.

`use_qk_norm` is the same LayerNorm of every head's queries and keys; `logit_scale` multiplies the outputs only.
"""

from dataclasses import replace
from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import head_gains, interleaved_planes
from isobasin.architectures.stream import StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Cohere model."""
    shape = llama.decoder_sizes(config)
    planes = interleaved_planes(rotated(config, shape.features))
    if not config.use_qk_norm:
        return llama.blocks(config, planes=planes)
    gains = {
        "query_gain": head_gains(f"{llama.ATTENTION}.q_norm.weight", shape.features, shape.heads),
        "key_gain": head_gains(f"{llama.ATTENTION}.k_norm.weight", shape.features, shape.groups),
    }
    return llama.blocks(config, planes=planes, norm=QueryKeyNorm.centred, own_gains=gains)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a Cohere model: one LayerNorm serves both blocks of a layer."""
    usual = llama.stream(config)
    return replace(usual, feedforward_norm=usual.attention_norm, mean=True)


FAMILY = Family("cohere", llama.PREFIXES, blocks, partial(llama.decoder_feedforwards, bias=False), stream)
