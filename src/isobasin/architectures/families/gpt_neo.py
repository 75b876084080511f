"""GPT-Neo: separate projections, of which only the output has a bias.

Scores are not scaled, and local layers see a window of positions only; neither changes the group.
"""

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import separate

_ATTENTION = "h.{layer}.attn.attention"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-Neo."""
    shape = sizes(config)
    names = (f"{_ATTENTION}.{part}_proj" for part in ("q", "k", "v", "out"))
    projections = separate(shape, *names, bias=False, output_bias=True)
    return attention_blocks(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a GPT-Neo."""
    sizes, activation = gpt2.feedforward_sizes(config, config.intermediate_size), config.activation_function
    return linear_blocks(layers(config), _FEEDFORWARD, *sizes, activation, "c_fc", "c_proj", bias=True)


FAMILY = Family(
    "gpt_neo",
    ("transformer.",),
    blocks,
    feedforwards,
    gpt2.stream,
    ("attn.attention.bias", "attn.attention.masked_bias"),
)
