"""The vision tower of a CLIP by itself."""

from isobasin.architectures.families import clip
from isobasin.architectures.family import Family

FAMILY = Family("clip_vision_model", (clip.VISION,), clip.tower_blocks, feedforwards=clip.tower_feedforwards)
