"""GLM: Llama with gate and up fused, and the first features of a head rotating in interleaved order.

`attention_bias` is about queries, keys and values, the output has none.
"""

from functools import partial

from isobasin.architectures.families import llama, phi3

blocks = partial(llama.blocks, output_bias=False, interleaved=True, partial=True)

FAMILY = llama.like(model_type="glm", blocks=blocks, feedforwards=phi3.feedforwards)
