"""StableLM: Llama with LayerNorm; the first features of a head rotate, in half order.

`use_qkv_bias` is about queries, keys and values, the output has none. `qk_layernorm` gives each head's queries and keys
a LayerNorm without bias by themselves.
"""

from dataclasses import replace
from functools import partial

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import Sizes, gains, half_planes
from isobasin.architectures.projection import Gains
from isobasin.architectures.stream import StreamFacts
from isobasin.symmetries.groups import QueryKeyNorm


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a StableLM."""
    shape = llama.decoder_sizes(config)
    planes = half_planes(rotated(config, shape.features, partial=True))
    return llama.decoder_blocks(
        config,
        bias=config.use_qkv_bias,
        output_bias=False,
        planes=planes,
        norm=QueryKeyNorm.centred if config.qk_layernorm else None,
        own_gains=_gains(shape) if config.qk_layernorm else None,
    )


def _gains(shape: Sizes) -> dict[str, Gains]:
    """The gains of every head's queries and keys."""

    def of(letter: str, heads: int) -> Gains:
        names = (f"{llama.ATTENTION}.{letter}_layernorm.norms.{head}.weight" for head in range(heads))
        return tuple(gains(name, shape.features) for name in names)

    return {"query_gain": of("q", shape.heads), "key_gain": of("k", shape.groups)}


def stream(config: Config) -> StreamFacts:
    """The residual stream of a StableLM: one normalisation serves both blocks of a layer where they are parallel."""
    usual = llama.stream(config)
    second = usual.attention_norm if config.use_parallel_residual else usual.feedforward_norm
    return replace(usual, feedforward_norm=second, mean=True)


FAMILY = Family("stablelm", llama.PREFIXES, blocks, partial(llama.decoder_feedforwards, bias=False), stream)
