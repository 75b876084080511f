"""Falcon: one fused tensor of `[queries | K | V]` for each key/value head, of which there are three possible numbers.

`new_decoder_architecture` has `num_kv_heads` of them, `multi_query` one, and otherwise every head has its own. All
features of a head rotate, in half order, or with `alibi` none: a slope then ties every head to its place. `bias` is
about all projections.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_feedforwards
from isobasin.architectures.configuration import Config, layers, rotated, sizes
from isobasin.architectures.families import gpt2, gpt_neox
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import fused_heads, half_planes
from isobasin.architectures.stream import StreamFacts

_LAYER = "h.{layer}"
_ATTENTION = f"{_LAYER}.self_attention"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Falcon."""
    groups = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else None
    shape = sizes(config, kv_heads=groups)
    projections = fused_heads(shape, f"{_ATTENTION}.query_key_value", f"{_ATTENTION}.dense", bias=config.bias)
    planes = () if config.alibi else half_planes(rotated(config, shape.features))
    return attention_blocks(layers(config), _ATTENTION, shape, projections, planes, permuted=not config.alibi)


feedforwards = partial(
    linear_feedforwards,
    name=f"{_LAYER}.mlp",
    parts=gpt_neox.PARTS,
    entries=("ffn_hidden_size", "activation"),
    bias="bias",
)


def stream(config: Config) -> StreamFacts:
    """The residual stream of a Falcon; one normalisation or two serve blocks that are parallel."""
    first, second = "input_layernorm", "input_layernorm" if config.parallel_attn else "post_attention_layernorm"
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        first, second = "ln_attn", "ln_mlp"
    return gpt2.stream(
        config,
        embeddings=(("word_embeddings.weight", 1),),
        attention_norm=f"{_LAYER}.{first}",
        feedforward_norm=f"{_LAYER}.{second}",
    )


FAMILY = Family("falcon", ("transformer.",), blocks, feedforwards, stream)
