"""Gemma: Llama with heads of any width.

The gains of its RMSNorm are stored less one. Its embeddings are multiplied by one number, which commutes with all maps
of the residual stream. `use_bidirectional_attention` only changes the mask.
"""

from functools import partial

from isobasin.architectures.families import llama

FAMILY = llama.like(model_type="gemma", stream=partial(llama.stream, gain_offset=1.0))
