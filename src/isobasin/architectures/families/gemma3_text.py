"""Gemma 3, text model: the blocks of Gemma with normalised queries and keys, whose stored gains lack a 1.

A cap on scores and `query_pre_attn_scalar` don't change the group, sliding windows only the mask.
"""

from functools import partial

from isobasin.architectures.families import gemma2, llama
from isobasin.symmetries.groups import QueryKeyNorm

blocks = partial(llama.blocks, norm=QueryKeyNorm.head, gain_offset=1.0, by_layer_type=True)

FAMILY = llama.like(model_type="gemma3_text", blocks=blocks, feedforwards=gemma2.feedforwards, stream=gemma2.stream)
