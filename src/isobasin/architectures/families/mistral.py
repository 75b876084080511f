"""Mistral: Llama without biases. `sliding_window` only changes the mask."""

from isobasin.architectures.families import llama

FAMILY = llama.like(model_type="mistral", computes="llama")
