"""The text tower of a CLIP by itself."""

from isobasin.architectures.families import clip
from isobasin.architectures.family import Family

FAMILY = Family("clip_text_model", (clip.TEXT,), clip.tower_blocks, feedforwards=clip.tower_feedforwards)
