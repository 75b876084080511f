"""GPT-J: separate projections, without biases in the attention.

Rotary positions turn the first `rotary_dim` features of a head, in interleaved order.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import attention_blocks, attention_group, linear_blocks
from isobasin.architectures.configuration import Config, layers, sizes
from isobasin.architectures.families import gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.architectures.layouts import interleaved_planes, separate
from isobasin.architectures.stream import Readout
from isobasin.errors import ArchitectureError

_ATTENTION = "h.{layer}.attn"
_FEEDFORWARD = "h.{layer}.mlp"


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-J."""
    if not config.rotary_dim:
        # The table would have the model's width, not a head's: transformers fails on it.
        raise ArchitectureError("rotary_dim must be given: the number of features of a head that rotate")
    shape = sizes(config)
    names = (f"{_ATTENTION}.{part}_proj" for part in ("q", "k", "v", "out"))
    projections = separate(shape, *names, bias=False, output_bias=False)
    group = attention_group(shape, projections, interleaved_planes(config.rotary_dim))
    return attention_blocks(layers(config), _ATTENTION, projections, group)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of a GPT-J."""
    sizes, activation = gpt2.feedforward_sizes(config, config.n_inner), config.activation_function
    return linear_blocks(layers(config), _FEEDFORWARD, *sizes, activation, "fc_in", "fc_out", bias=True)


# One normalisation serves both blocks of a layer.
stream = partial(
    gpt2.stream,
    embeddings=(("wte.weight", 1),),
    readouts=(Readout("lm_head", tied=True), Readout("score"), Readout("qa_outputs")),
    feedforward_norm="h.{layer}.ln_1",
)


FAMILY = Family(
    "gptj", ("transformer.",), blocks, feedforwards, stream, ("attn.bias", "attn.masked_bias", "attn.embed_positions")
)
