"""Phi: separate projections, all with a bias; the first features of a head rotate, in half order."""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers, refuse, rotated
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import half_planes, linears
from isobasin.architectures.sites import feedforward_sites
from isobasin.architectures.stream import StreamFacts

_FEEDFORWARD = "layers.{layer}.mlp"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a Phi."""
    refuse(config, "qk_layernorm", "normalised queries and keys are not supported")
    planes = half_planes(rotated(config, llama.decoder_sizes(config).features, partial=True))
    return llama.decoder_blocks(config, bias=True, output_bias=True, planes=planes, output="dense")


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a Phi."""
    projections = linears(
        config.hidden_size, config.intermediate_size, f"{_FEEDFORWARD}.fc1", f"{_FEEDFORWARD}.fc2", bias=True
    )
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, config.hidden_act)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a Phi: one LayerNorm serves both blocks of a layer."""
    usual = llama.stream(config)
    return replace(usual, feedforward_norm=usual.attention_norm, final_norm="final_layernorm", mean=True)


FAMILY = Family("phi", llama.PREFIXES, blocks, feedforwards, stream)
