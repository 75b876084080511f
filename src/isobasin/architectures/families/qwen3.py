"""Qwen3: Llama with normalised queries and keys, one gain per feature for all heads."""

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Qwen3."""
    bias = config.attention_bias
    return llama.decoder_blocks(config, bias=bias, output_bias=bias, norm=QueryKeyNorm.head)


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Qwen3."""
    return llama.decoder_feedforwards(config, bias=False)


FAMILY = Family("qwen3", llama.PREFIXES, blocks, llama.BUFFERS, feedforwards, llama.stream)
