"""SigLIP: the towers of CLIP.

The vision tower's pooling head, which attends from one learned query, stays as it is: it is outside the layers.
"""

from dataclasses import replace

from isobasin.architectures.families import clip

FAMILY = replace(clip.FAMILY, model_type="siglip", beyond=("pooling head",))
