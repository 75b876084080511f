"""StarCoder2: the attention of Llama, LayerNorm, and feed-forward blocks without a gate; `use_bias` is about all.

`sliding_window` only changes the mask.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import linears
from isobasin.architectures.sites import feedforward_sites
from isobasin.architectures.stream import StreamFacts

_FEEDFORWARD = "layers.{layer}.mlp"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a StarCoder2."""
    return llama.decoder_blocks(config, bias=config.use_bias, output_bias=config.use_bias)


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a StarCoder2."""
    up, down = f"{_FEEDFORWARD}.c_fc", f"{_FEEDFORWARD}.c_proj"
    projections = linears(config.hidden_size, config.intermediate_size, up, down, bias=config.use_bias)
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, config.hidden_act)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a StarCoder2."""
    return replace(llama.stream(config), mean=True)


FAMILY = Family("starcoder2", llama.PREFIXES, blocks, feedforwards, stream)
