"""DistilBERT: separate projections, all with a bias."""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import linears, separate
from isobasin.architectures.schema import AttentionSite, FeedForwardSite
from isobasin.architectures.sites import attention_group, attention_sites, feedforward_sites

_LAYER = "transformer.layer.{layer}"
_ATTENTION = f"{_LAYER}.attention"
_FEEDFORWARD = f"{_LAYER}.ffn"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a DistilBERT."""
    shape = sizes(config)
    projections = separate(
        shape,
        query=f"{_ATTENTION}.q_lin",
        key=f"{_ATTENTION}.k_lin",
        value=f"{_ATTENTION}.v_lin",
        output=f"{_ATTENTION}.out_lin",
        bias=True,
        output_bias=True,
    )
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections))


def feedforwards(config: Config) -> list[FeedForwardSite]:
    """The feed-forward blocks of a DistilBERT."""
    projections = linears(
        config.hidden_size, config.hidden_dim, f"{_FEEDFORWARD}.lin1", f"{_FEEDFORWARD}.lin2", bias=True
    )
    return feedforward_sites(layers(config), _FEEDFORWARD, projections, config.activation)


FAMILY = Family("distilbert", ("distilbert.",), blocks, feedforwards=feedforwards)
