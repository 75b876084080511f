"""Gemma: Llama with heads of any width.

The gains of its RMSNorm are stored less one, and its embeddings are scaled, so the residual stream isn't Llama's.
`use_bidirectional_attention` only changes the mask.
"""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.architectures.family import Family

FAMILY = Family("gemma", llama.PREFIXES, llama.blocks, llama.BUFFERS, partial(llama.decoder_feedforwards, bias=False))
