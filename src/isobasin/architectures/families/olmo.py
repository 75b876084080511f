"""OLMo: the blocks of Llama; its LayerNorm has no parameters, so that nothing is known of the residual stream."""

from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, refuse
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OLMo."""
    refuse(config, "clip_qkv", "clipped queries, keys and values are not supported")
    return llama.blocks(config)


FAMILY = Family("olmo", llama.PREFIXES, blocks, llama.BUFFERS, partial(llama.decoder_feedforwards, bias=False))
