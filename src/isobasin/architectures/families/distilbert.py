"""DistilBERT: separate projections, all with a bias."""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import separate
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.sites import attention_group, attention_sites

_ATTENTION = "transformer.layer.{layer}.attention"


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


FAMILY = Family("distilbert", ("distilbert.",), blocks)
