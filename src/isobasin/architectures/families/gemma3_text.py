"""Gemma 3, text model: the blocks of Gemma with normalised queries and keys, whose stored gains lack a 1.

A cap on scores and `query_pre_attn_scalar` don't change the group, sliding windows only the mask.
"""

from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import gemma2, llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import half_planes
from isobasin.architectures.schema import AttentionSite
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Gemma 3."""
    bias, features = config.attention_bias, config.head_dim
    planes = [half_planes(rotated(config, features, layer_type=kind)) for kind in sorted(set(config.layer_types))]
    return llama.decoder_blocks(
        config, bias=bias, output_bias=bias, norm=QueryKeyNorm.head, gain_offset=1.0, planes=planes[0]
    )


FAMILY = Family("gemma3_text", llama.PREFIXES, blocks, llama.BUFFERS, gemma2.feedforwards)
