"""Marian: the blocks of BART."""

from dataclasses import replace

from isobasin.architectures.families import bart

FAMILY = replace(bart.FAMILY, model_type="marian")
