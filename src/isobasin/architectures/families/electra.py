"""ELECTRA: the blocks of BERT. Embeddings of another width are projected into the residual stream."""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.streams import Head, Stream


def stream(config: Config) -> Stream:
    """The residual stream of an ELECTRA: that of a BERT under other heads."""
    heads = (
        Head("discriminator_predictions.dense"),
        Head("generator_predictions.dense", transform="generator_predictions.LayerNorm", then=("generator_lm_head",)),
        Head("qa_outputs"),
        Head("sequence_summary.summary"),
        Head("classifier.dense"),
        bert.classifier(config, "sequence_summary.summary"),
    )
    outside = ("classifier.", "discriminator_predictions.dense_prediction.", "generator_lm_head.bias")
    own = replace(bert.stream(config), heads=heads, outside=outside)
    return own if config.embedding_size == config.hidden_size else bert.projected(own, "embeddings_project")


FAMILY = Family("electra", ("electra.",), bert.blocks, bert.feedforwards, stream)
