"""Our BERT with its own number of heads in some layers (`isobasin.models`)."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, layers
from isobasin.architectures.families import bert


def regrouped(config: Config, usual: Callable[[Config], list[AttentionBlock]]) -> list[AttentionBlock]:
    """The attention blocks of a family, each as if all layers had its heads."""
    blocks: list[AttentionBlock] = []
    for layer in range(layers(config)):
        alike = copy(config)
        if config.heads_per_layer is not None:
            alike.num_attention_heads = config.heads_per_layer[layer]
        blocks.append(usual(alike)[layer])
    return blocks


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of such a BERT."""
    return regrouped(config, bert.blocks)


FAMILY = replace(bert.FAMILY, model_type="isobasin_bert", blocks=blocks)
