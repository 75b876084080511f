"""Whisper: the blocks of BART without key biases; the encoder reads sound."""

from dataclasses import replace
from functools import partial

from isobasin.architectures.families import bart

FAMILY = replace(bart.FAMILY, model_type="whisper", blocks=partial(bart.blocks, key_bias=False))
