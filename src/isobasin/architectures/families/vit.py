"""ViT: separate projections; `qkv_bias` is about queries, keys and values, the output always has a bias."""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import linears, separate
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites
from isobasin.architectures.streams import Head, Stream

# The names in checkpoints. transformers 5 has others in memory and converts on loading and saving.
_LAYER = "encoder.layer.{layer}"
_ATTENTION = f"{_LAYER}.attention"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a ViT."""
    # Not declared in the configuration class, but its model looks for it.
    shape = sizes(config, features=getattr(config, "head_dim", None))
    projections = separate(
        shape,
        query=f"{_ATTENTION}.attention.query",
        key=f"{_ATTENTION}.attention.key",
        value=f"{_ATTENTION}.attention.value",
        output=f"{_ATTENTION}.output.dense",
        bias=config.qkv_bias,
        output_bias=True,
    )
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a ViT."""
    projections = linears(
        config.hidden_size,
        config.intermediate_size,
        f"{_LAYER}.intermediate.dense",
        f"{_LAYER}.output.dense",
        bias=True,
    )
    return feedforward_sites(layers(config), _LAYER, projections, config.hidden_act)


def stream(config: Config) -> Stream:
    """The residual stream of a ViT."""
    return Stream(
        embeddings=(
            ("embeddings.cls_token", 2),
            ("embeddings.distillation_token", 2),
            ("embeddings.mask_token", 2),
            ("embeddings.position_embeddings", 2),
            ("embeddings.patch_embeddings.projection.weight", 0),
            ("embeddings.patch_embeddings.projection.bias", 0),
        ),
        heads=(
            Head("classifier"),
            Head("cls_classifier"),
            Head("distillation_classifier"),
            Head("pooler.dense", base=True),
        ),
        attention_norm=f"{_LAYER}.layernorm_before",
        feedforward_norm=f"{_LAYER}.layernorm_after",
        final_norm="layernorm",
    )


FAMILY = Family("vit", ("vit.",), blocks, feedforwards=feedforwards, stream=stream)
