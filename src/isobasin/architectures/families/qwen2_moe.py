"""Qwen2-MoE: the attention of Qwen2, whose biases `qkv_bias` can leave out.

Layers have experts or dense feed-forward blocks, which aren't moved: attention only.
"""

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.schema import AttentionSite


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Qwen2-MoE."""
    return llama.decoder_blocks(config, bias=config.qkv_bias, output_bias=False)


FAMILY = Family("qwen2_moe", llama.PREFIXES, blocks, llama.BUFFERS)
