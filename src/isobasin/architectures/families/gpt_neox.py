"""GPT-NeoX: queries, keys and values fused head by head.

Rotary positions turn the first features of a head, in half order. `attention_bias` is about both modules;
`use_parallel_residual` is outside the attention.
"""

from isobasin.architectures.configuration import Config, layers, rotary_factor, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import fused_heads, half_planes
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.sites import attention_group, attention_sites

_ATTENTION = "layers.{layer}.attention"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a GPT-NeoX."""
    shape = sizes(config)
    projections = fused_heads(shape, f"{_ATTENTION}.query_key_value", f"{_ATTENTION}.dense", bias=config.attention_bias)
    planes = half_planes(int(shape.features * rotary_factor(config)))
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections, planes))


FAMILY = Family(
    "gpt_neox",
    ("gpt_neox.",),
    blocks,
    buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
)
