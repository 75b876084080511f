"""RoBERTa: the blocks of BERT, under other heads."""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bert
from isobasin.architectures.family import Family
from isobasin.architectures.streams import Head, Stream


def stream(config: Config) -> Stream:
    """The residual stream of a RoBERTa."""
    heads = (
        Head("pooler.dense", base=True),
        Head("lm_head.dense", transform="lm_head.layer_norm", then=("lm_head.decoder",)),
        Head("qa_outputs"),
        Head("classifier.dense"),
        bert.classifier(config, "pooler.dense"),
    )
    return replace(bert.stream(config), heads=heads, outside=("classifier.", "lm_head.bias", "lm_head.decoder.bias"))


FAMILY = Family("roberta", ("roberta.",), bert.blocks, bert.feedforwards, stream)
