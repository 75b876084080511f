"""MPNet: the blocks of BERT under other names; one table of relative position biases for all layers.

Its buckets are those of an encoder of T5, always 32 of them for distances up to 128.
"""

from dataclasses import replace

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import separate_attention
from isobasin.architectures.configuration import Config, sizes
from isobasin.architectures.families import bert, roberta
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import bucket_constants, position_table
from isobasin.architectures.stream import StreamFacts
from isobasin.errors import ArchitectureError

_BUCKETS, _FARTHEST = 32, 128


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of an MPNet."""
    if config.relative_attention_num_buckets != _BUCKETS:
        # transformers makes a table of that size, but looks up entries as if there were 32.
        raise ArchitectureError(
            f"relative_attention_num_buckets is {config.relative_attention_num_buckets}: only {_BUCKETS} are supported"
        )
    table = position_table("encoder.relative_attention_bias.weight", _BUCKETS, sizes(config).heads)
    constants = bucket_constants(_BUCKETS, _FARTHEST, bidirectional=True)
    name = "encoder.layer.{layer}.attention.attn"
    return separate_attention(config, name, "qkvo", table=constants, others={"table": table})


def stream(config: Config) -> StreamFacts:
    """The residual stream of an MPNet: that of a RoBERTa under other names."""
    return replace(roberta.stream(config), attention_norm="encoder.layer.{layer}.attention.LayerNorm")


FAMILY = Family("mpnet", ("mpnet.",), blocks, bert.feedforwards, stream)
