"""Our GPT-2 with its own number of heads in some layers (`isobasin.models`)."""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import gpt2
from isobasin.architectures.families.isobasin_bert import regrouped
from isobasin.architectures.family import Family


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of such a GPT-2."""
    return regrouped(config, gpt2.blocks)


FAMILY = Family("isobasin_gpt2", gpt2.FAMILY.prefixes, blocks, gpt2.feedforwards, gpt2.stream, gpt2.FAMILY.buffers)
