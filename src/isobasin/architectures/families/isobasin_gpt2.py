"""Our GPT-2 with its own number of heads in some layers (`isobasin.models`)."""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import gpt2
from isobasin.architectures.families.isobasin_bert import regrouped


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of such a GPT-2."""
    return regrouped(config, gpt2.blocks)


FAMILY = replace(gpt2.FAMILY, model_type="isobasin_gpt2", blocks=blocks)
