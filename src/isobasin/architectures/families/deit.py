"""DeiT: the blocks of ViT."""

from isobasin.architectures.families import vit
from isobasin.architectures.family import Family

FAMILY = Family("deit", ("deit.",), vit.blocks, feedforwards=vit.feedforwards, stream=vit.stream)
