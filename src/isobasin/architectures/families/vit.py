"""ViT: separate projections; `qkv_bias` is about queries, keys and values, the output always has a bias."""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import position_table, separate
from isobasin.architectures.stream import Readout, StreamFacts

# The names in checkpoints. transformers 5 has others in memory and converts on loading and saving.
_LAYER = "encoder.layer.{layer}"
ATTENTION = f"{_LAYER}.attention"


def encoder_blocks(
    config: Config, *, bias: bool, key_bias: bool = True, table: str | None = None, constants: tuple[int, ...] = ()
) -> list[AttentionBlock]:
    """The attention blocks of an encoder of ViT's kind.

    Args:
        config: The configuration.
        bias: Whether queries, values and, unless `key_bias` is False, keys have biases.
        key_bias: See there.
        table: Name of the table of position biases; None without.
        constants: Its constants (`AttentionGroup.table`).
    """
    # Not declared in the configuration class, but its model looks for it.
    shape = sizes(config, features=getattr(config, "head_dim", None))
    query, key, value = (f"{ATTENTION}.attention.{part}" for part in ("query", "key", "value"))
    output = f"{ATTENTION}.output.dense"
    projections = separate(shape, query, key, value, output, bias=bias, output_bias=True, key_bias=key_bias)
    group = attention_group(shape, projections, table=constants)
    position = None if table is None else position_table(table, len(constants), shape.heads)
    return attention_blocks(layers(config), ATTENTION, projections, group, table=position)


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a ViT."""
    return encoder_blocks(config, bias=config.qkv_bias)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a ViT."""
    width, units, names = config.hidden_size, config.intermediate_size, ("intermediate.dense", "output.dense")
    return linear_blocks(layers(config), _LAYER, width, units, config.hidden_act, *names, bias=True)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a ViT."""
    return StreamFacts(
        embeddings=(
            ("embeddings.cls_token", 2),
            ("embeddings.distillation_token", 2),
            ("embeddings.mask_token", 2),
            ("embeddings.position_embeddings", 2),
            ("embeddings.patch_embeddings.projection.weight", 0),
            ("embeddings.patch_embeddings.projection.bias", 0),
        ),
        readouts=(
            Readout("classifier"),
            Readout("cls_classifier"),
            Readout("distillation_classifier"),
            Readout("pooler.dense", base=True),
        ),
        attention_norm=f"{_LAYER}.layernorm_before",
        feedforward_norm=f"{_LAYER}.layernorm_after",
        final_norm="layernorm",
    )


FAMILY = Family("vit", ("vit.",), blocks, feedforwards=feedforwards, stream=stream)
