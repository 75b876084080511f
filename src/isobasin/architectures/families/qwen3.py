"""Qwen3: Llama with normalised queries and keys, one gain per feature for all heads."""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.symmetries.groups import QueryKeyNorm

FAMILY = llama.like(model_type="qwen3", blocks=partial(llama.blocks, norm=QueryKeyNorm.head))
