"""OLMo 2: Llama with queries and keys normalised over all heads together, and layers normalised after each block."""

from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OLMo 2."""
    return llama.blocks(config, norm=QueryKeyNorm.full)


FAMILY = Family("olmo2", llama.PREFIXES, blocks, llama.BUFFERS, partial(llama.decoder_feedforwards, bias=False))
