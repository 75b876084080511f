"""Cohere: the blocks of Llama with all features of a head rotating in interleaved order, and a LayerNorm without bias.

`use_qk_norm` is the same LayerNorm of every head's queries and keys; `logit_scale` multiplies the outputs only. One
LayerNorm serves both blocks of a layer.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.layouts import gains
from isobasin.architectures.projection import Projection
from isobasin.symmetries.groups import QueryKeyNorm


def _gains(letter: str, heads: int, features: int) -> Projection:
    return gains(f"{llama.ATTENTION}.{letter}_norm.weight", features, heads, "head feature")


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Cohere model."""
    norm = QueryKeyNorm.centred if config.use_qk_norm else None
    return llama.blocks(config, interleaved=True, norm=norm, own_gains=_gains)


FAMILY = llama.like(model_type="cohere", blocks=blocks, stream=partial(llama.stream, parallel=True, mean=True))
