"""Gemma 2: the blocks of Gemma, with normalisations before and after each.

`attn_logit_softcapping` caps scores before the softmax: what leaves scores as they are may still move, and as every
feature rotates there is no free key bias to lose. `query_pre_attn_scalar` scales them; sliding windows only change the
mask.
"""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import gemma, llama
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.stream import StreamFacts


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Gemma 2."""
    return llama.decoder_feedforwards(config, bias=False, activation=config.hidden_activation)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a Gemma 2: that of a Gemma, with a normalisation of what each block returns."""
    return replace(
        gemma.stream(config),
        feedforward_norm="layers.{layer}.pre_feedforward_layernorm",
        after=("layers.{layer}.post_attention_layernorm", "layers.{layer}.post_feedforward_layernorm"),
    )


FAMILY = Family("gemma2", llama.PREFIXES, llama.blocks, feedforwards, stream)
