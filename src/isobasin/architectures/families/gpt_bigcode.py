"""GPT-BigCode (StarCoder): GPT-2 with `nn.Linear` modules.

With `multi_query` all query heads share one key/value head, whose rows follow theirs; without it each head's queries,
keys and values lie together. `scale_attn_weights` changes a constant factor of the scores, not the group.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_feedforwards
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import fused_heads, fused_rows

_ATTENTION = "h.{layer}.attn"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-BigCode."""
    shape = sizes(config, kv_heads=1 if config.multi_query else None)
    fused = fused_rows if config.multi_query else fused_heads
    projections = fused(shape, f"{_ATTENTION}.c_attn", f"{_ATTENTION}.c_proj", bias=True)
    return attention_blocks(layers(config), _ATTENTION, shape, projections)


feedforwards = partial(
    linear_feedforwards, name="h.{layer}.mlp", parts=("c_fc", "c_proj"), entries=("n_inner", "activation_function")
)


FAMILY = Family("gpt_bigcode", ("transformer.",), blocks, feedforwards, gpt2.stream, ("attn.bias",))
