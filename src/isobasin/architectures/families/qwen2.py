"""Qwen2: Llama with biases on queries, keys and values, none on the output.

Sliding windows only change the mask. A file without the biases is a Llama's.
"""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.architectures.family import Family

FAMILY = Family(
    "qwen2",
    llama.PREFIXES,
    partial(llama.decoder_blocks, bias=True, output_bias=False),
    partial(llama.decoder_feedforwards, bias=False),
    llama.stream,
    computes="llama",
    unbiased=partial(llama.decoder_blocks, bias=False, output_bias=False),
)
