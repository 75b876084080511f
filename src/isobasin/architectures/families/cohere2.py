"""Cohere 2: Cohere with sliding windows, without normalised queries and keys; only layers with a window rotate.

In the others any invertible map of queries and keys is allowed, and a key bias is free.
"""

from functools import partial

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of a Cohere 2."""
    windows = config.sliding_window is not None
    rotates = [windows and kind == "sliding_attention" for kind in config.layer_types]
    return llama.blocks(config, interleaved=True, rotates=rotates)


FAMILY = llama.like(model_type="cohere2", blocks=blocks, stream=partial(llama.stream, parallel=True, mean=True))
