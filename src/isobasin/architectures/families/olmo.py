"""OLMo: the blocks of Llama; its LayerNorm has no parameters.

No gain holds the coordinates of its residual stream, not even where the head is the embedding.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config, refuse
from isobasin.architectures.families import llama


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of an OLMo."""
    refuse(config, "clip_qkv", "clipped queries, keys and values are not supported")
    return llama.blocks(config)


stream = partial(llama.stream, attention_norm=None, feedforward_norm=None, final_norm=None, mean=True)

FAMILY = llama.like(model_type="olmo", blocks=blocks, stream=stream)
