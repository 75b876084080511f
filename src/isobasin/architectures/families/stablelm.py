"""StableLM: Llama with LayerNorm; the first features of a head rotate, in half order.

`use_qkv_bias` is about queries, keys and values, the output has none.
"""

from dataclasses import replace
from functools import partial

from isobasin.architectures.configuration import Config, refuse, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import half_planes
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.streams import Stream


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a StableLM."""
    refuse(config, "qk_layernorm", "normalised queries and keys are not supported")
    planes = half_planes(rotated(config, llama.decoder_sizes(config).features, partial=True))
    return llama.decoder_blocks(config, bias=config.use_qkv_bias, output_bias=False, planes=planes)


def stream(config: Config) -> Stream:
    """The residual stream of a StableLM: one normalisation serves both blocks of a layer where they are parallel."""
    usual = llama.stream(config)
    second = usual.attention_norm if config.use_parallel_residual else usual.feedforward_norm
    return replace(usual, feedforward_norm=second, mean=True)


FAMILY = Family(
    "stablelm", llama.PREFIXES, blocks, llama.BUFFERS, partial(llama.decoder_feedforwards, bias=False), stream
)
