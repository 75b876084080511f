"""Qwen2: Llama with biases on queries, keys and values, none on the output.

Sliding windows only change the mask. A file without the biases is a Llama's.
"""

from functools import partial

from isobasin.architectures.families import llama

FAMILY = llama.like(
    model_type="qwen2",
    blocks=partial(llama.blocks, bias=True, output_bias=False),
    computes="llama",
    unbiased=partial(llama.blocks, bias=False),
)
