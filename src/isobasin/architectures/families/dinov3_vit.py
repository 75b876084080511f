"""DINOv3: a ViT in which patches rotate by their place in the image, all features of a head in half order.

The first half of the planes turns by the row, the second by the column, at equal frequencies but by angles that are
independent of each other, so every plane stays by itself. Class and register tokens don't rotate. Each projection has
a switch for its bias. transformers has no head for it, so that its residual stream is its output and can't move.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_feedforwards
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import Projections, half_planes, separate
from isobasin.errors import ArchitectureError

# The names in checkpoints. transformers 5 has others in memory and converts on loading and saving.
_LAYER = "layer.{layer}"
_ATTENTION = f"{_LAYER}.attention"
_FEEDFORWARD = f"{_LAYER}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a DINOv3."""
    shape = sizes(config)
    if shape.features % 4:
        raise ArchitectureError(f"heads of {shape.features} features: rows and columns need a multiple of 4")
    names = (f"{_ATTENTION}.{name}_proj" for name in "qkvo")
    everything = separate(shape, *names, bias=True, output_bias=True)
    biases = (config.query_bias, config.key_bias, config.value_bias, config.proj_bias)
    present = zip(everything, biases, strict=True)
    projections = Projections(*(p if has else replace(p, bias=None) for p, has in present))
    return attention_blocks(layers(config), _ATTENTION, shape, projections, half_planes(shape.features))


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a DINOv3; `use_gated_mlp` adds a gate."""
    names = "up_proj", "down_proj", "gate_proj"
    return linear_feedforwards(config, _FEEDFORWARD, names if config.use_gated_mlp else names[:2], bias="mlp_bias")


FAMILY = Family("dinov3_vit", ("model.",), blocks, feedforwards=feedforwards)
