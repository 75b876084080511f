"""Phi: separate projections, all with a bias; the first features of a head rotate, in half order.

Feed-forward blocks have no gate, and one LayerNorm serves both blocks of a layer.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, refuse
from isobasin.architectures.families import llama


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Phi."""
    refuse(config, "qk_layernorm", "normalised queries and keys are not supported")
    return llama.blocks(config, bias=True, partial=True, output="dense")


FAMILY = llama.like(
    model_type="phi",
    blocks=blocks,
    feedforwards=partial(llama.feedforwards, bias=True, parts=("fc1", "fc2")),
    stream=partial(llama.stream, parallel=True, final_norm="final_layernorm", mean=True),
)
