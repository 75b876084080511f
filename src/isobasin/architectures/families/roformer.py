"""RoFormer: BERT with rotary positions on all features of a head, in interleaved order.

`rotary_value` turns the values too.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import interleaved_planes
from isobasin.architectures.stream import Readout, StreamFacts


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a RoFormer."""
    planes = interleaved_planes(sizes(config).features)
    return bert.blocks(config, planes=planes, rotary_value=config.rotary_value)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a RoFormer: that of a BERT without positions, whose classifiers have no pooler."""
    usual = bert.stream(config)
    own = replace(usual, readouts=(*usual.readouts, Readout("classifier.dense")))
    return own if config.embedding_size == config.hidden_size else bert.projected(own, "embeddings_project")


FAMILY = Family("roformer", ("roformer.",), blocks, bert.feedforwards, stream, ("encoder.embed_positions.weight",))
