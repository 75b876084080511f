"""Qwen3: Llama with normalised queries and keys, one gain per feature for all heads."""

from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Qwen3."""
    return llama.blocks(config, norm=QueryKeyNorm.head)


FAMILY = Family("qwen3", llama.PREFIXES, blocks, partial(llama.decoder_feedforwards, bias=False), llama.stream)
