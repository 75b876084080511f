"""T5: an encoder, alone or with a decoder; separate projections without biases.

Each of the two has one table of relative position biases, kept in its first layer, for the self-attention of all its
layers. Cross-attention has none, and scores are not divided by anything.
"""

from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import linear_feedforwards, separate_attention, stacked
from isobasin.architectures.configuration import Config, layers, refuse, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import bucket_constants, position_table

_DEPTHS = {"encoder": "num_hidden_layers", "decoder": "num_decoder_layers"}


def _attention(config: Config, side: str, place: str) -> list[AttentionBlock]:
    """The blocks at one place in all layers of a side."""
    name = f"{side}.block.{{layer}}.layer.{place}"
    shape = sizes(config, features=config.d_kv)
    own: dict[str, Any] = {"bias": False, "shape": shape, "depth": layers(config, _DEPTHS[side])}
    if not place.endswith("SelfAttention"):
        return separate_attention(config, name, "qkvo", **own)
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    constants = bucket_constants(buckets, farthest, bidirectional=side == "encoder")
    table = position_table(f"{side}.block.0.layer.{place}.relative_attention_bias.weight", buckets, shape.heads)
    return separate_attention(config, name, "qkvo", table=constants, others={"table": table}, **own)


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a T5."""
    refuse(config, "is_decoder", "a T5 decoder alone is not supported")
    encoder = {"encoder": _attention(config, "encoder", "0.SelfAttention")}
    if not config.is_encoder_decoder:
        return stacked(encoder)
    decoder = {
        "decoder": _attention(config, "decoder", "0.SelfAttention"),
        "cross-attention": _attention(config, "decoder", "1.EncDecAttention"),
    }
    return stacked(encoder | decoder)


def _feedforward(config: Config, side: str, place: int) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a side; with a gate they have two modules that read."""
    name = f"{side}.block.{{layer}}.layer.{place}.DenseReluDense"
    parts = ("wi_1", "wo", "wi_0") if config.is_gated_act else ("wi", "wo")
    depth = layers(config, _DEPTHS[side])
    return linear_feedforwards(config, name, parts, ("d_ff", "dense_act_fn"), bias=False, depth=depth)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a T5."""
    sides = {"encoder": 1, "decoder": 2} if config.is_encoder_decoder else {"encoder": 1}
    return stacked({side: _feedforward(config, side, place) for side, place in sides.items()})


FAMILY = Family(
    "t5",
    ("transformer.",),
    blocks,
    feedforwards,
    buffers=("EncDecAttention.relative_attention_bias.weight",),
    accepts=("is_encoder_decoder",),
)
