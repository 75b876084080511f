"""CLIP: a text and a vision tower, each with a configuration of its own; separate projections, all with a bias."""

from collections.abc import Callable
from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import AnyBlock, linear_feedforwards, separate_attention, stacked
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bart
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock

TEXT, VISION = "text_model.", "vision_model."
_LAYER = "encoder.layers.{layer}"


def tower_blocks(config: Config, tower: str = "") -> list[AttentionBlock]:
    """The attention blocks of one tower, with `tower` before their names."""
    return separate_attention(config, f"{tower}{_LAYER}.self_attn", bart.PARTS)


def tower_feedforwards(config: Config, tower: str = "") -> list[FeedForwardBlock]:
    """The feed-forward blocks of one tower, likewise."""
    return linear_feedforwards(config, f"{tower}{_LAYER}.mlp", ("fc1", "fc2"))


def _towers(config: Config, tower: Callable[[Config, str], list[AnyBlock]]) -> list[AnyBlock]:
    """The blocks of both towers; what classifies images has no text tower."""
    found = {"text tower": (config.text_config, TEXT), "vision tower": (config.vision_config, VISION)}
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        del found["text tower"]
    return stacked({name: tower(*one) for name, one in found.items()})


blocks, feedforwards = partial(_towers, tower=tower_blocks), partial(_towers, tower=tower_feedforwards)
FAMILY = Family("clip", (), blocks, feedforwards=feedforwards, accepts=("text_config", "vision_config"))
