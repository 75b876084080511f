"""Granite: Llama with constant factors.

`attention_multiplier` scales the scores, the others embeddings, outputs and both blocks: no map of heads, units or the
residual stream sees them.
"""

from isobasin.architectures.families import llama

FAMILY = llama.like(model_type="granite")
