"""DistilBERT: separate projections, all with a bias."""

from functools import partial

from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.stream import Readout, StreamFacts

_LAYER = "transformer.layer.{layer}"

blocks = partial(separate_attention, name=f"{_LAYER}.attention", parts=("q_lin", "k_lin", "v_lin", "out_lin"))
feedforwards = partial(
    linear_feedforwards, name=f"{_LAYER}.ffn", parts=("lin1", "lin2"), entries=("hidden_dim", "activation")
)


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
