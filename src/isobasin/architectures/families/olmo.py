"""OLMo: the blocks of Llama; its LayerNorm has no parameters."""

from dataclasses import replace
from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, refuse
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.stream import StreamFacts


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OLMo."""
    refuse(config, "clip_qkv", "clipped queries, keys and values are not supported")
    return llama.blocks(config)


def stream(config: Config) -> StreamFacts:
    """The residual stream of an OLMo: no gain holds its coordinates, not even where the head is the embedding."""
    return replace(llama.stream(config), attention_norm=None, feedforward_norm=None, final_norm=None, mean=True)


FAMILY = Family("olmo", llama.PREFIXES, blocks, partial(llama.decoder_feedforwards, bias=False), stream)
