"""DeiT: the attention of ViT."""

from isobasin.architectures.families import vit
from isobasin.architectures.family import Family

FAMILY = Family("deit", ("deit.",), vit.blocks)
