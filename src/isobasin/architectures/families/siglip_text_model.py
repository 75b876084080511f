"""The text tower of a SigLIP by itself."""

from dataclasses import replace

from isobasin.architectures.families import clip_text_model

FAMILY = replace(clip_text_model.FAMILY, model_type="siglip_text_model")
