"""OPT: separate projections; `enable_bias` is about all of them."""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import linears, separate
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites

_LAYER = "decoder.layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attn"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of an OPT."""
    shape = sizes(config)
    projections = separate(
        shape,
        query=f"{_ATTENTION}.q_proj",
        key=f"{_ATTENTION}.k_proj",
        value=f"{_ATTENTION}.v_proj",
        output=f"{_ATTENTION}.out_proj",
        bias=config.enable_bias,
        output_bias=config.enable_bias,
    )
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of an OPT."""
    projections = linears(config.hidden_size, config.ffn_dim, f"{_LAYER}.fc1", f"{_LAYER}.fc2", bias=config.enable_bias)
    return feedforward_sites(layers(config), _LAYER, projections, config.activation_function)


FAMILY = Family("opt", ("model.",), blocks, feedforwards=feedforwards)
