"""Gemma 3, text model: the blocks of Gemma with normalised queries and keys, whose stored gains lack a 1.

A cap on scores and `query_pre_attn_scalar` don't change the group, sliding windows only the mask.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import gemma2, llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import half_planes
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Gemma 3."""
    planes = half_planes(rotated(config, config.head_dim, by_layer_type=True))
    return llama.blocks(config, norm=QueryKeyNorm.head, gain_offset=1.0, planes=planes)


FAMILY = Family("gemma3_text", llama.PREFIXES, blocks, gemma2.feedforwards, gemma2.stream)
