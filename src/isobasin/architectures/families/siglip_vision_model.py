"""The vision tower of a SigLIP by itself."""

from dataclasses import replace

from isobasin.architectures.families import clip_vision_model, siglip

FAMILY = replace(clip_vision_model.FAMILY, model_type="siglip_vision_model", beyond=siglip.FAMILY.beyond)
