"""RoBERTa: the blocks of BERT, under other heads."""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.stream import Readout, StreamFacts


def stream(config: Config) -> StreamFacts:
    """The residual stream of a RoBERTa."""
    readouts = (
        Readout("pooler.dense", base=True),
        Readout("lm_head.dense", transform="lm_head.layer_norm", then=("lm_head.decoder",)),
        Readout("qa_outputs"),
        Readout("classifier.dense"),
        bert.classifier(config, "pooler.dense"),
    )
    return replace(
        bert.stream(config), readouts=readouts, outside=("classifier.", "lm_head.bias", "lm_head.decoder.bias")
    )


FAMILY = Family("roberta", ("roberta.",), bert.blocks, bert.feedforwards, stream)
