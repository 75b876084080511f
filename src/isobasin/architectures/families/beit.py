"""BEiT: the blocks of ViT without key biases; relative position biases per layer, one table for all, or none.

The last three entries of a table are those of the class token: it reads the first and the last, which share a constant;
patches read the one between, as that of their score of it, along with all others. A larger image reads means of entries
of patches, which leave their constant as it is. What a block returns is scaled per channel outside the blocks.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, both_sides, distances
from isobasin.architectures.families import vit
from isobasin.architectures.family import Family
from isobasin.architectures.stream import StreamFacts
from isobasin.errors import ArchitectureError

_TABLE = "relative_position_bias.relative_position_bias_table"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a BEiT."""
    own, shared = config.use_relative_position_bias, config.use_shared_relative_position_bias
    if own and shared:
        raise ArchitectureError(
            "config.json has use_relative_position_bias and use_shared_relative_position_bias: only one is supported"
        )
    if not (own or shared):
        return vit.encoder_blocks(config, bias=True, key_bias=False)
    table = f"{vit.ATTENTION}.attention.{_TABLE}" if own else f"encoder.{_TABLE}"
    return vit.encoder_blocks(config, bias=True, key_bias=False, table=table, constants=_constants(config))


def _constants(config: Config) -> tuple[int, ...]:
    """The constants of a table: entries for all distances of two patches, and three for the class token."""
    images, patches = (both_sides(config, name) for name in ("image_size", "patch_size"))
    rows, columns = (image // patch for image, patch in zip(images, patches, strict=True))
    return (0,) * distances(rows, columns) + (1, 0, 1)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a BEiT: that of a ViT, with factors of what blocks return."""
    layer = "encoder.layer.{layer}"
    return replace(
        vit.stream(config),
        final_norm="pooler.layernorm" if config.use_mean_pooling else "layernorm",
        scales=(f"{layer}.lambda_1", f"{layer}.lambda_2") if config.layer_scale_init_value > 0 else None,
    )


FAMILY = Family(
    "beit", ("beit.",), blocks, vit.FAMILY.feedforwards, stream, ("relative_position_bias.relative_position_index",)
)
