"""Cohere: the blocks of Llama with all features of a head rotating in interleaved order, and a LayerNorm without bias.

`logit_scale` multiplies the outputs only.
"""

from dataclasses import replace
from functools import partial

from isobasin.architectures.configuration import Config, refuse, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import interleaved_planes
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.streams import Stream


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Cohere model."""
    refuse(config, "use_qk_norm", "normalised queries and keys are not supported")
    planes = interleaved_planes(rotated(config, llama.decoder_sizes(config).features))
    return llama.blocks(config, planes=planes)


def stream(config: Config) -> Stream:
    """The residual stream of a Cohere model: one LayerNorm serves both blocks of a layer."""
    usual = llama.stream(config)
    return replace(usual, feedforward_norm=usual.attention_norm, mean=True)


FAMILY = Family(
    "cohere", llama.PREFIXES, blocks, llama.BUFFERS, partial(llama.decoder_feedforwards, bias=False), stream
)
