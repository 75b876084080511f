"""ALBERT: separate projections, all with a bias; layers share their tensors.

Each of `num_hidden_groups` groups holds `inner_group_num` blocks, which its layers run through over and over: a block
is listed once, as its tensors are stored once.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import linear_feedforwards, separate_attention, stacked
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.stream import Readout, StreamFacts
from isobasin.errors import ArchitectureError


def _groups(config: Config) -> dict[str, str]:
    """The names of the blocks of each group."""
    layers(config)  # there must be one to share them
    if config.num_hidden_groups < 1 or config.inner_group_num < 1:
        raise ArchitectureError("num_hidden_groups and inner_group_num must be positive")
    names = {f"group {g}": f"encoder.albert_layer_groups.{g}" for g in range(config.num_hidden_groups)}
    return {group: f"{name}.albert_layers.{{layer}}" for group, name in names.items()}


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of an ALBERT."""

    def stack(layer: str) -> list[AttentionBlock]:
        parts = "query", "key", "value", "dense"
        return separate_attention(config, f"{layer}.attention", parts, depth=config.inner_group_num)

    return stacked({group: stack(layer) for group, layer in _groups(config).items()})


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of an ALBERT."""

    def stack(layer: str) -> list[FeedForwardBlock]:
        return linear_feedforwards(config, layer, ("ffn", "ffn_output"), depth=config.inner_group_num)

    return stacked({group: stack(layer) for group, layer in _groups(config).items()})


def stream(config: Config) -> StreamFacts:
    """The residual stream of an ALBERT: that of a BERT under other names, into which embeddings are projected."""
    own = replace(
        bert.stream(config),
        readouts=(
            Readout("pooler", base=True),
            Readout("predictions.dense", transform="predictions.LayerNorm", then=("predictions.decoder",)),
            Readout("qa_outputs"),
            bert.classifier(config, "pooler"),
        ),
        attention_norm="{name}.LayerNorm",
        feedforward_norm="{name}.full_layer_layer_norm",
        outside=("classifier.", "predictions.bias", "sop_classifier."),
    )
    return bert.projected(own, "encoder.embedding_hidden_mapping_in")


FAMILY = Family(
    "albert",
    ("albert.",),
    blocks,
    feedforwards=feedforwards,
    stream=stream,
    beside=("attention.LayerNorm.weight", "attention.LayerNorm.bias"),
)
