"""OPT: separate projections; `enable_bias` is about all four."""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import separate
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.sites import attention_group, attention_sites

_ATTENTION = "decoder.layers.{layer}.self_attn"


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


FAMILY = Family("opt", ("model.",), blocks)
