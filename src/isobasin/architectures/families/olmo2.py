"""OLMo 2: Llama with queries and keys normalised over all heads together.

Blocks read the residual stream as it is, and what they return is normalised before the sum.
"""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.symmetries.groups import QueryKeyNorm

stream = partial(
    llama.stream,
    attention_norm=None,
    feedforward_norm=None,
    after=("layers.{layer}.post_attention_layernorm", "layers.{layer}.post_feedforward_layernorm"),
)

FAMILY = llama.like(model_type="olmo2", blocks=partial(llama.blocks, norm=QueryKeyNorm.full), stream=stream)
