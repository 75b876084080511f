"""OLMo 2: Llama with queries and keys normalised over all heads together, and layers normalised after each block."""

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OLMo 2."""
    bias = config.attention_bias
    return llama.decoder_blocks(config, bias=bias, output_bias=bias, norm=QueryKeyNorm.full)


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of an OLMo 2."""
    return llama.decoder_feedforwards(config, bias=False)


FAMILY = Family("olmo2", llama.PREFIXES, blocks, llama.BUFFERS, feedforwards)
