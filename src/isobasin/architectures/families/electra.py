"""ELECTRA: the blocks of BERT. Embeddings of another width are projected into the residual stream."""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.stream import Readout, StreamFacts


def stream(config: Config) -> StreamFacts:
    """The residual stream of an ELECTRA: that of a BERT under other heads."""
    readouts = (
        Readout("discriminator_predictions.dense"),
        Readout(
            "generator_predictions.dense", transform="generator_predictions.LayerNorm", then=("generator_lm_head",)
        ),
        Readout("qa_outputs"),
        Readout("sequence_summary.summary"),
        Readout("classifier.dense"),
        bert.classifier(config, "sequence_summary.summary"),
    )
    outside = ("classifier.", "discriminator_predictions.dense_prediction.", "generator_lm_head.bias")
    own = replace(bert.stream(config), readouts=readouts, outside=outside)
    return own if config.embedding_size == config.hidden_size else bert.projected(own, "embeddings_project")


FAMILY = Family("electra", ("electra.",), bert.blocks, bert.feedforwards, stream)
