"""GPT-2: queries, keys and values fused in one transposed projection, all with a bias.

`scale_attn_weights` and `scale_attn_by_inverse_layer_idx` change a constant factor of the scores and
`reorder_and_upcast_attn` their precision, not the group.
"""

from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import fused_blocks
from isobasin.architectures.schema import AttentionSite
from isobasin.architectures.sites import attention_group, attention_sites

_ATTENTION = "h.{layer}.attn"


def blocks(config: Config) -> list[AttentionSite]:
    """The attention blocks of a GPT-2."""
    shape = sizes(config)
    projections = fused_blocks(shape, f"{_ATTENTION}.c_attn", f"{_ATTENTION}.c_proj", bias=True)
    return attention_sites(layers(config), _ATTENTION, projections, attention_group(shape, projections))


FAMILY = Family("gpt2", ("transformer.",), blocks, buffers=("attn.bias", "attn.masked_bias"))
