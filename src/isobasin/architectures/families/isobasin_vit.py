"""Our ViT with rotary positions, or with its own number of heads in some layers (`isobasin.models`).

All features of a head rotate, in half order, by the place of the token in the sequence, the class token first.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import vit
from isobasin.architectures.families.isobasin_bert import regrouped
from isobasin.architectures.layouts import half_planes


def _usual(config: Config) -> list[AttentionBlock]:
    """The attention blocks if all layers had the same heads."""
    return vit.encoder_blocks(config, planes=half_planes(sizes(config).features) if config.rotary else ())


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of such a ViT."""
    return regrouped(config, _usual)


FAMILY = replace(vit.FAMILY, model_type="isobasin_vit", blocks=blocks)
