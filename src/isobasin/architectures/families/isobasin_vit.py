"""Our ViT with rotary positions, or with its own number of heads in some layers (`isobasin.models`).

All features of a head rotate, in half order, by the place of the token in the sequence, the class token first.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_group
from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import vit
from isobasin.architectures.families.isobasin_bert import regrouped
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import Projections, half_planes


def _usual(config: Config) -> list[AttentionBlock]:
    """The attention blocks if all layers had the same heads."""
    blocks = vit.blocks(config)
    if not config.rotary:
        return blocks
    shape = sizes(config)
    planes = half_planes(shape.features)
    return [replace(block, group=attention_group(shape, Projections(**block.projections), planes)) for block in blocks]


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of such a ViT."""
    return regrouped(config, _usual)


FAMILY = Family("isobasin_vit", vit.FAMILY.prefixes, blocks, feedforwards=vit.feedforwards, stream=vit.stream)
