"""T5: an encoder, alone or with a decoder; separate projections without biases.

Each of the two has one table of relative position biases, kept in its first layer, for the self-attention of all its
layers. Cross-attention has none, and scores are not divided by anything.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks, stacked
from isobasin.architectures.configuration import Config, layers, refuse, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import bucket_constants, position_table, separate

_DEPTHS = {"encoder": "num_hidden_layers", "decoder": "num_decoder_layers"}


def _attention(config: Config, side: str, place: str) -> list[AttentionBlock]:
    """The blocks at one place in all layers of a side."""
    name = f"{side}.block.{{layer}}.layer.{place}"
    shape = sizes(config, features=config.d_kv)
    projections = separate(shape, *(f"{name}.{part}" for part in "qkvo"), bias=False, output_bias=False)
    depth = layers(config, _DEPTHS[side])
    if not place.endswith("SelfAttention"):
        return attention_blocks(depth, name, projections, attention_group(shape, projections))
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    constants = bucket_constants(buckets, farthest, bidirectional=side == "encoder")
    table = position_table(f"{side}.block.0.layer.{place}.relative_attention_bias.weight", buckets, shape.heads)
    group = attention_group(shape, projections, table=constants)
    return attention_blocks(depth, name, projections, group, table=table)


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
    up, gate = ("wi_1", "wi_0") if config.is_gated_act else ("wi", None)
    depth, sizes = layers(config, _DEPTHS[side]), (config.hidden_size, config.d_ff)
    return linear_blocks(depth, name, *sizes, config.dense_act_fn, up, "wo", gate, bias=False)


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
