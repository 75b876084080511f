"""Granite: Llama with constant factors.

`attention_multiplier` scales the scores, the others embeddings, outputs and both blocks: no map of heads, units or the
residual stream sees them.
"""

from isobasin.architectures.families import llama
from isobasin.architectures.family import Family

FAMILY = Family("granite", llama.PREFIXES, llama.blocks, llama.feedforwards, llama.stream)
