"""ViT: separate projections; `qkv_bias` is about queries, keys and values, the output always has a bias."""

from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import separate_attention
from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import Plane, position_table
from isobasin.architectures.stream import Readout, StreamFacts

# The names in checkpoints. transformers 5 has others in memory and converts on loading and saving.
_LAYER = "encoder.layer.{layer}"
ATTENTION = f"{_LAYER}.attention"


def encoder_blocks(
    config: Config,
    *,
    planes: tuple[Plane, ...] = (),
    bias: bool | str = "qkv_bias",
    key_bias: bool = True,
    table: str | None = None,
    constants: tuple[int, ...] = (),
) -> list[AttentionBlock]:
    """The attention blocks of an encoder of ViT's kind.

    Args:
        config: The configuration.
        planes: Features that rotate together.
        bias: Whether queries, values and, unless `key_bias` is False, keys have biases, or which entry says so.
        key_bias: See there.
        table: Name of the table of position biases; None without.
        constants: Its constants (`AttentionGroup.table`).
    """
    # Not declared in the configuration class, but its model looks for it.
    shape = sizes(config, features=getattr(config, "head_dim", None))
    parts = "attention.query", "attention.key", "attention.value", "output.dense"
    others = {} if table is None else {"table": position_table(table, len(constants), shape.heads)}
    facts: dict[str, Any] = {"shape": shape, "table": constants, "others": others, "key_bias": key_bias}
    return separate_attention(config, ATTENTION, parts, planes, bias=bias, output_bias=True, **facts)


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


FAMILY = Family("vit", ("vit.",), encoder_blocks, bert.feedforwards, stream)
