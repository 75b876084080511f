"""GPT-2: queries, keys and values fused in one transposed projection, all with a bias.

`scale_attn_weights` and `scale_attn_by_inverse_layer_idx` change a constant factor of the scores and
`reorder_and_upcast_attn` their precision, not the group.
"""

from dataclasses import replace
from typing import Any

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, feedforward_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import fused_blocks, transposed_linears
from isobasin.architectures.stream import Readout, StreamFacts

_ATTENTION = "h.{layer}.attn"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-2."""
    shape = sizes(config)
    projections = fused_blocks(shape, f"{_ATTENTION}.c_attn", f"{_ATTENTION}.c_proj", bias=True)
    return attention_blocks(layers(config), _ATTENTION, shape, projections)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a GPT-2."""
    sizes = config.hidden_size, 4 * config.hidden_size if config.n_inner is None else config.n_inner
    projections = transposed_linears(*sizes, f"{_FEEDFORWARD}.c_fc", f"{_FEEDFORWARD}.c_proj", bias=True)
    return feedforward_blocks(layers(config), _FEEDFORWARD, projections, config.activation_function)


def stream(config: Config, **others: Any) -> StreamFacts:
    """The residual stream of a GPT-2, or of one that differs in what else `StreamFacts` names."""
    usual = StreamFacts(
        embeddings=(("wte.weight", 1), ("wpe.weight", 1)),
        readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("classifier"), Readout("qa_outputs")),
        attention_norm="h.{layer}.ln_1",
        feedforward_norm="h.{layer}.ln_2",
        final_norm="ln_f",
    )
    return replace(usual, **others)


FAMILY = Family("gpt2", ("transformer.",), blocks, feedforwards, stream, ("attn.bias", "attn.masked_bias"))
