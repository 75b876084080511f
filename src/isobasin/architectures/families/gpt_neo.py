"""GPT-Neo: separate projections, of which only the output has a bias.

Scores are not scaled, and local layers see a window of positions only; neither changes the group.
"""

from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardSite
from isobasin.architectures.layouts import linears, separate
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites

_ATTENTION = "h.{layer}.attn.attention"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a GPT-Neo."""
    shape = sizes(config)
    projections = separate(
        shape,
        query=f"{_ATTENTION}.q_proj",
        key=f"{_ATTENTION}.k_proj",
        value=f"{_ATTENTION}.v_proj",
        output=f"{_ATTENTION}.out_proj",
        bias=False,
        output_bias=True,
    )
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a GPT-Neo."""
    units = 4 * config.hidden_size if config.intermediate_size is None else config.intermediate_size
    projections = linears(config.hidden_size, units, f"{_FEEDFORWARD}.c_fc", f"{_FEEDFORWARD}.c_proj", bias=True)
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, config.activation_function)


FAMILY = Family(
    "gpt_neo",
    ("transformer.",),
    blocks,
    feedforwards,
    gpt2.stream,
    ("attn.attention.bias", "attn.attention.masked_bias"),
)
