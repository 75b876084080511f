"""Mixtral: Mistral with experts for feed-forward blocks, which aren't moved: attention only."""

from functools import partial

from isobasin.architectures.families import llama
from isobasin.architectures.family import Family

FAMILY = Family("mixtral", llama.PREFIXES, partial(llama.decoder_blocks, bias=False, output_bias=False), llama.BUFFERS)
