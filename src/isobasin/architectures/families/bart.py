"""BART: an encoder and a decoder, whose layers attend to the encoder's output too; separate projections with biases.

Cross-attention reads its keys and values elsewhere than its queries. The group is the same: neither the scores nor the
sum of values ask where they come from.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks, stacked
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import separate
from isobasin.errors import ArchitectureError


def attention_stack(
    config: Config,
    name: str,
    heads: str = "num_attention_heads",
    depth: str = "num_hidden_layers",
    *,
    key_bias: bool = True,
) -> list[AttentionBlock]:
    """The blocks called `name` in all layers of one stack; `heads` and `depth` are the entries that count them."""
    shape = sizes(config, heads)
    query, key, value, output = (f"{name}.{part}_proj" for part in ("q", "k", "v", "out"))
    projections = separate(shape, query, key, value, output, bias=True, output_bias=True, key_bias=key_bias)
    return attention_blocks(layers(config, depth), name, projections, attention_group(shape, projections))


def blocks(config: Config, *, key_bias: bool = True) -> list[AttentionBlock]:
    """The attention blocks of an encoder and a decoder of BART's kind."""
    if not config.is_encoder_decoder:
        raise ArchitectureError(f"is_encoder_decoder is false: a {config.model_type} decoder alone is not supported")

    def stack(side: str, module: str) -> list[AttentionBlock]:
        name, heads, depth = f"{side}.layers.{{layer}}.{module}", f"{side}_attention_heads", f"{side}_layers"
        return attention_stack(config, name, heads, depth, key_bias=key_bias)

    return stacked(
        {
            "encoder": stack("encoder", "self_attn"),
            "decoder": stack("decoder", "self_attn"),
            "cross-attention": stack("decoder", "encoder_attn"),
        }
    )


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of an encoder and a decoder of BART's kind."""

    def stack(side: str) -> list[FeedForwardBlock]:
        layer, units = f"{side}.layers.{{layer}}", getattr(config, f"{side}_ffn_dim")
        depth, activation = layers(config, f"{side}_layers"), config.activation_function
        return linear_blocks(depth, layer, config.hidden_size, units, activation, "fc1", "fc2", bias=True)

    return stacked({side: stack(side) for side in ("encoder", "decoder")})


FAMILY = Family("bart", ("model.",), blocks, feedforwards=feedforwards, accepts=("is_encoder_decoder",))
