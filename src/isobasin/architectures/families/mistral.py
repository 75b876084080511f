"""Mistral: Llama without biases. `sliding_window` only changes the mask."""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.architectures.family import Family

FAMILY = Family(
    "mistral",
    llama.PREFIXES,
    partial(llama.decoder_blocks, bias=False, output_bias=False),
    partial(llama.decoder_feedforwards, bias=False),
    llama.stream,
    computes="llama",
)
