"""DeiT: the blocks of ViT."""

from dataclasses import replace

from isobasin.architectures.families import vit

FAMILY = replace(vit.FAMILY, model_type="deit", prefixes=("deit.",))
