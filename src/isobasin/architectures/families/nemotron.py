"""Nemotron: Llama with LayerNorm and feed-forward blocks without a gate; the first features of a head rotate.

The gains of its LayerNorm are stored less one. `relu2` is of degree 2: a unit that reads s as much writes s² as much.
"""

from functools import partial

from isobasin.architectures.families import llama

FAMILY = llama.like(
    model_type="nemotron",
    blocks=partial(llama.blocks, partial=True),
    feedforwards=partial(llama.feedforwards, parts=("up_proj", "down_proj")),
    stream=partial(llama.stream, gain_offset=1.0, mean=True),
)
