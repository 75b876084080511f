"""MPT: queries, keys and values fused in one `nn.Linear`, and ALiBi, whose slope ties every head to its place.

transformers has no other positions for it, whatever `attn_config` says of ALiBi. Clipped projections are refused.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_rows
from isobasin.errors import ArchitectureError

_ATTENTION = "blocks.{layer}.attn"
_FEEDFORWARD = "blocks.{layer}.ffn"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of an MPT."""
    if config.attn_config.clip_qkv:
        raise ArchitectureError("attn_config has clip_qkv: clipped projections are not supported")
    shape = sizes(config)
    projections = fused_rows(shape, f"{_ATTENTION}.Wqkv", f"{_ATTENTION}.out_proj", bias=False)
    return attention_blocks(layers(config), _ATTENTION, shape, projections, permuted=False)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of an MPT."""
    width = config.hidden_size
    return linear_blocks(layers(config), _FEEDFORWARD, width, 4 * width, "gelu", "up_proj", "down_proj", bias=False)


stream = partial(
    gpt2.stream,
    embeddings=(("wte.weight", 1),),
    attention_norm="blocks.{layer}.norm_1",
    feedforward_norm="blocks.{layer}.norm_2",
    final_norm="norm_f",
)


FAMILY = Family("mpt", ("transformer.",), blocks, feedforwards=feedforwards, stream=stream)
