"""DINOv2: the attention of ViT; a feed-forward block with or without gate (`use_swiglu_ffn`).

What a block returns is scaled per channel before it is added: that is outside the blocks, whose output biases it scales
along with the rest.
"""

from dataclasses import replace

from isobasin.architectures.building import feedforward_blocks, linear_blocks
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import vit
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_gate
from isobasin.architectures.stream import Readout, StreamFacts

_LAYER = "encoder.layer.{layer}"
_FEEDFORWARD = f"{_LAYER}.mlp"


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a DINOv2."""
    width = config.hidden_size
    units = int(width * config.mlp_ratio)
    if config.use_swiglu_ffn:
        # Two thirds of the units, rounded up to a multiple of 8; `hidden_act` is not asked.
        units = (int(units * 2 / 3) + 7) // 8 * 8
        gated = fused_gate(width, units, f"{_FEEDFORWARD}.weights_in", f"{_FEEDFORWARD}.weights_out", bias=True)
        return feedforward_blocks(layers(config), _FEEDFORWARD, gated, "silu")
    return linear_blocks(layers(config), _FEEDFORWARD, width, units, config.hidden_act, "fc1", "fc2", bias=True)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a DINOv2: that of a ViT, with factors of what blocks return.

    A classifier reads the class token and the mean of the patches, one after the other.
    """
    usual = vit.stream(config)
    return replace(
        usual,
        embeddings=tuple({**dict(usual.embeddings), "embeddings.mask_token": 1}.items()),
        readouts=(Readout("classifier", copies=2),),
        attention_norm=f"{_LAYER}.norm1",
        feedforward_norm=f"{_LAYER}.norm2",
        scales=(f"{_LAYER}.layer_scale1.lambda1", f"{_LAYER}.layer_scale2.lambda1"),
    )


FAMILY = Family("dinov2", ("dinov2.",), vit.encoder_blocks, feedforwards=feedforwards, stream=stream)
