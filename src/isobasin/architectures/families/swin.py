"""Swin: attention in windows, in stages of several widths; a table of relative position biases in every layer.

A window reads every entry of its table. What pads an image has keys and values too, and masks are finite: softmax
cancels constants all the same.
"""

from collections.abc import Callable
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import AnyBlock, linear_blocks, stacked
from isobasin.architectures.configuration import Config, both_sides, distances, sizes
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import position_table
from isobasin.errors import ArchitectureError


def _staged(config: Config, stage: Callable[[Config, str, int], list[AnyBlock]]) -> list[AnyBlock]:
    """The blocks of every stage; `stage` is told the name of its layers and its number."""
    if not len(config.depths) == len(config.num_heads) > 0 or min(config.depths) < 1:
        raise ArchitectureError(f"depths {config.depths} and num_heads {config.num_heads}: each stage needs both")
    _check_window(config)
    # The names in checkpoints. transformers 5 has others in memory and converts on loading and saving.
    found = {i: stage(config, f"encoder.layers.{i}.blocks.{{layer}}", i) for i in range(len(config.depths))}
    return stacked({f"stage {i}": blocks for i, blocks in found.items()})


def _check_window(config: Config) -> None:
    """Refuse windows larger than the last stage's image: transformers has no biases for what it makes of them."""
    images, patches = (both_sides(config, name) for name in ("image_size", "patch_size"))
    halvings = 2 ** (len(config.depths) - 1)
    # Rounded up each time: images and what is left of them are padded.
    least = min(-(-image // (patch * halvings)) for image, patch in zip(images, patches, strict=True))
    if config.window_size > least:
        raise ArchitectureError(f"window_size {config.window_size}: the last stage's image has only {least} patches")


def _width(config: Config, stage: int) -> int:
    return config.embed_dim * 2**stage


def _attention(config: Config, layer: str, stage: int) -> list[AttentionBlock]:
    shape = sizes(config, stage=(_width(config, stage), config.num_heads[stage]))
    constants = (0,) * distances(config.window_size, config.window_size)
    table = position_table(f"{layer}.attention.self.relative_position_bias_table", len(constants), shape.heads)
    own: dict[str, Any] = {"depth": config.depths[stage], "table": constants, "others": {"table": table}}
    return bert.blocks(config, name=f"{layer}.attention", bias="qkv_bias", output_bias=True, shape=shape, **own)


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Swin."""
    return _staged(config, _attention)


def _feedforward(config: Config, layer: str, stage: int) -> list[FeedForwardBlock]:
    width, names = _width(config, stage), ("intermediate.dense", "output.dense")
    units = int(config.mlp_ratio * width)
    return linear_blocks(config.depths[stage], layer, width, units, config.hidden_act, *names, bias=True)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a Swin."""
    return _staged(config, _feedforward)


FAMILY = Family("swin", ("swin.",), blocks, feedforwards, buffers=("attention.self.relative_position_index",))
