"""RoFormer: BERT with rotary positions on all features of a head, in interleaved order.

`rotary_value` turns the values too.
"""

from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import interleaved_planes
from isobasin.architectures.schema import AttentionSite


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a RoFormer."""
    return bert.blocks(config, interleaved_planes(sizes(config).features), rotary_value=config.rotary_value)


FAMILY = Family("roformer", ("roformer.",), blocks, feedforwards=bert.feedforwards)
