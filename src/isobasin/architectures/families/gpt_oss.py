"""gpt-oss: Llama with a score of no token for every head, which takes a part of the attention (sink).

Feed-forward blocks are experts, which aren't moved: attention only. Sliding windows only change the mask.
"""

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.schema import AttentionSite


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a gpt-oss."""
    bias = config.attention_bias
    return llama.decoder_blocks(config, bias=bias, output_bias=bias, sink=True)


FAMILY = Family("gpt_oss", llama.PREFIXES, blocks, llama.BUFFERS)
