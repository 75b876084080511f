"""Gemma: Llama with heads of any width.

The gains of its RMSNorm are stored less one. Its embeddings are multiplied by one number, which commutes with all maps
of the residual stream. `use_bidirectional_attention` only changes the mask.
"""

from dataclasses import replace
from functools import partial

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import llama
from isobasin.architectures.family import Family
from isobasin.architectures.stream import StreamFacts


def stream(config: Config) -> StreamFacts:
    """The residual stream of a Gemma."""
    return replace(llama.stream(config), gain_offset=1.0)


FAMILY = Family("gemma", llama.PREFIXES, llama.blocks, partial(llama.decoder_feedforwards, bias=False), stream)
