"""DistilBERT: separate projections, all with a bias."""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import separate
from isobasin.architectures.stream import Readout, StreamFacts

_LAYER = "transformer.layer.{layer}"
_ATTENTION = f"{_LAYER}.attention"
_FEEDFORWARD = f"{_LAYER}.ffn"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a DistilBERT."""
    shape = sizes(config)
    names = (f"{_ATTENTION}.{part}_lin" for part in ("q", "k", "v", "out"))
    projections = separate(shape, *names, bias=True, output_bias=True)
    return attention_blocks(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a DistilBERT."""
    sizes = config.hidden_size, config.hidden_dim
    return linear_blocks(layers(config), _FEEDFORWARD, *sizes, config.activation, "lin1", "lin2", bias=True)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a DistilBERT, normalised after every sum."""
    return StreamFacts(
        embeddings=(("embeddings.word_embeddings.weight", 1), ("embeddings.position_embeddings.weight", 1)),
        readouts=(
            Readout("vocab_transform", transform="vocab_layer_norm"),
            Readout("vocab_projector"),
            Readout("qa_outputs"),
            Readout("pre_classifier"),
            bert.classifier(config, "pre_classifier"),
        ),
        attention_norm=f"{_LAYER}.sa_layer_norm",
        feedforward_norm=f"{_LAYER}.output_layer_norm",
        final_norm=None,
        embedding_norm="embeddings.LayerNorm",
        post=True,
        outside=("classifier.", "vocab_projector.bias"),
    )


FAMILY = Family("distilbert", ("distilbert.",), blocks, feedforwards, stream)
