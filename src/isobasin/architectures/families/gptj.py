"""GPT-J: separate projections, without biases in the attention.

Rotary positions turn the first `rotary_dim` features of a head, in interleaved order.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import linear_feedforwards, separate_attention
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bart, gpt2
from isobasin.architectures.family import Family
from isobasin.architectures.layouts import interleaved_planes
from isobasin.architectures.stream import Readout
from isobasin.errors import ArchitectureError


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a GPT-J."""
    if not config.rotary_dim:
        # The table would have the model's width, not a head's: transformers fails on it.
        raise ArchitectureError("rotary_dim must be given: the number of features of a head that rotate")
    return separate_attention(config, "h.{layer}.attn", bart.PARTS, interleaved_planes(config.rotary_dim), bias=False)


feedforwards = partial(
    linear_feedforwards, name="h.{layer}.mlp", parts=("fc_in", "fc_out"), entries=("n_inner", "activation_function")
)


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
