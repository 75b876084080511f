"""OLMo 2: Llama with queries and keys normalised over all heads together, and layers normalised after each block."""

from dataclasses import replace
from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.stream import StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OLMo 2."""
    return llama.blocks(config, norm=QueryKeyNorm.full)


def stream(config: Config) -> StreamFacts:
    """The residual stream of an OLMo 2: blocks read it as it is, and what they return is normalised before the sum."""
    return replace(
        llama.stream(config),
        attention_norm=None,
        feedforward_norm=None,
        after=("layers.{layer}.post_attention_layernorm", "layers.{layer}.post_feedforward_layernorm"),
    )


FAMILY = Family("olmo2", llama.PREFIXES, blocks, partial(llama.decoder_feedforwards, bias=False), stream)
