"""GLM: Llama with gate and up fused, and the first features of a head rotating in interleaved order.

`attention_bias` is about queries, keys and values, the output has none.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import llama, phi3
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import interleaved_planes


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a GLM."""
    planes = interleaved_planes(rotated(config, llama.decoder_sizes(config).features, partial=True))
    return llama.decoder_blocks(config, bias=config.attention_bias, output_bias=False, planes=planes)


FAMILY = Family("glm", llama.PREFIXES, blocks, phi3.feedforwards, llama.stream)
