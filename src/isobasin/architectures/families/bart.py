"""BART: an encoder and a decoder, whose layers attend to the encoder's output too; separate projections with biases.

Cross-attention reads its keys and values elsewhere than its queries. The group is the same: neither the scores nor the
sum of values ask where they come from.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import linear_feedforwards, separate_attention, stacked
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.errors import ArchitectureError

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


def blocks(config: Config, *, key_bias: bool = True) -> list[AttentionBlock]:
    """The attention blocks of an encoder and a decoder of BART's kind."""
    if not config.is_encoder_decoder:
        raise ArchitectureError(f"is_encoder_decoder is false: a {config.model_type} decoder alone is not supported")

    def stack(side: str, module: str) -> list[AttentionBlock]:
        name, shape = f"{side}.layers.{{layer}}.{module}", sizes(config, f"{side}_attention_heads")
        depth = layers(config, f"{side}_layers")
        return separate_attention(config, name, PARTS, key_bias=key_bias, shape=shape, depth=depth)

    found = {"encoder": stack("encoder", "self_attn")}
    if "decoder" in _sides(config):
        found |= {"decoder": stack("decoder", "self_attn"), "cross-attention": stack("decoder", "encoder_attn")}
    return stacked(found)


def _sides(config: Config) -> tuple[str, ...]:
    """The stacks that there are: what classifies sound has no decoder."""
    alone = any(name.endswith("ForAudioClassification") for name in config.architectures or ())
    return ("encoder",) if alone else ("encoder", "decoder")


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of an encoder and a decoder of BART's kind."""

    def stack(side: str) -> list[FeedForwardBlock]:
        entries = f"{side}_ffn_dim", "activation_function"
        depth = layers(config, f"{side}_layers")
        return linear_feedforwards(config, f"{side}.layers.{{layer}}", ("fc1", "fc2"), entries, depth=depth)

    return stacked({side: stack(side) for side in _sides(config)})


FAMILY = Family("bart", ("model.",), blocks, feedforwards=feedforwards, accepts=("is_encoder_decoder",))
