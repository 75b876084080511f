"""Gemma 2: the blocks of Gemma, with normalisations before and after each.

`attn_logit_softcapping` caps scores before the softmax: what leaves scores as they are may still move, and as every
feature rotates there is no free key bias to lose. `query_pre_attn_scalar` scales them; sliding windows only change the
mask.
"""

from isobasin.architectures.blocks import FeedForwardSite
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Gemma 2."""
    return llama.decoder_feedforwards(config, bias=False, activation=config.hidden_activation)


FAMILY = Family("gemma2", llama.PREFIXES, llama.blocks, llama.BUFFERS, feedforwards)
