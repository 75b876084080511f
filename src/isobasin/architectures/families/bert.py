"""BERT: separate projections, all with a bias. `is_decoder` only changes the mask."""

from dataclasses import replace
from functools import partial

from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.configuration import Config
from isobasin.architectures.family import Family
from isobasin.architectures.stream import Readout, StreamFacts

_LAYER = "encoder.layer.{layer}"
_ATTENTION = f"{_LAYER}.attention"


blocks = partial(separate_attention, name=_ATTENTION, parts=("self.query", "self.key", "self.value", "output.dense"))
feedforwards = partial(linear_feedforwards, name=_LAYER, parts=("intermediate.dense", "output.dense"))


def classifier(config: Config, behind: str) -> Readout:
    """A classifier of tokens, which reads the stream; one of sequences reads what the module `behind` returns."""
    tokens = any(name.endswith("ForTokenClassification") for name in config.architectures or ())
    return Readout("classifier", behind=None if tokens else behind)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a BERT: normalised after every sum, and read by a pooler or by a transform."""
    return StreamFacts(
        embeddings=(
            ("embeddings.word_embeddings.weight", 1),
            ("embeddings.position_embeddings.weight", 1),
            ("embeddings.token_type_embeddings.weight", 1),
        ),
        readouts=(
            Readout("pooler.dense", base=True),
            Readout(
                "cls.predictions.transform.dense",
                transform="cls.predictions.transform.LayerNorm",
                then=("cls.predictions.decoder",),
            ),
            Readout("qa_outputs"),
            classifier(config, "pooler.dense"),
        ),
        attention_norm=f"{_ATTENTION}.output.LayerNorm",
        feedforward_norm=f"{_LAYER}.output.LayerNorm",
        final_norm=None,
        embedding_norm="embeddings.LayerNorm",
        post=True,
        outside=("classifier.", "cls.predictions.bias", "cls.predictions.decoder.bias", "cls.seq_relationship."),
    )


def projected(stream: StreamFacts, module: str) -> StreamFacts:
    """A stream into which a linear module writes embeddings of another width; transforms then write these."""
    beside = [name for head in stream.readouts if head.transform for name in (head.transform, *head.then)]
    return replace(
        stream,
        embeddings=((f"{module}.weight", 0), (f"{module}.bias", 0)),
        embedding_norm=None,
        readouts=tuple(replace(head, transform=None, then=()) for head in stream.readouts),
        before=("embeddings.",),
        outside=(*stream.outside, *(f"{name}." for name in beside)),
    )


FAMILY = Family("bert", ("bert.",), blocks, feedforwards, stream)
