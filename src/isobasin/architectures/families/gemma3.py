"""Gemma 3 that reads images: the text model and the vision tower of a SigLIP; the projector between stays as it is.

Files on the hub and those that several versions of transformers write name the towers in ways of their own, each tower
by itself. All that are listed here are read as the same model.
"""

from collections.abc import Callable, Sequence

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.building import AnyBlock, stacked
from isobasin.architectures.configuration import Config
from isobasin.architectures.families import clip, gemma2, gemma3_text
from isobasin.architectures.family import Family
from isobasin.architectures.feedforwards import FeedForwardBlock
from isobasin.errors import ArchitectureError

_TEXT, _VISION = "language_model.model.", "vision_tower."
_NAMINGS = (
    (_TEXT, "language_model.", "model.language_model."),
    (_VISION, "vision_tower.vision_model.", "model.vision_tower.", "model.vision_tower.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.lm_head.", "lm_head."),
)
_TOWERS = {"text_config": "gemma3_text", "vision_config": "siglip_vision_model"}


def _both(
    config: Config, text: Callable[[Config], Sequence[AnyBlock]], vision: Callable[[Config, str], Sequence[AnyBlock]]
) -> list[AnyBlock]:
    """The blocks of both towers, which must be of the types that are built."""
    for name, expected in _TOWERS.items():
        found = getattr(config, name).model_type
        if found != expected:
            raise ArchitectureError(f"{name} has model_type {found!r}: a gemma3 is supported with {expected!r} alone")
    named = [block.named(lambda name: _TEXT + name) for block in text(config.text_config)]
    return stacked({"text tower": named, "vision tower": vision(config.vision_config, _VISION)})


def blocks(config: Config) -> list[AttentionBlock]:
    """The attention blocks of both towers."""
    return _both(config, gemma3_text.blocks, clip.tower_blocks)


def feedforwards(config: Config) -> list[FeedForwardBlock]:
    """The feed-forward blocks of both towers."""
    return _both(config, gemma2.feedforwards, clip.tower_feedforwards)


FAMILY = Family(
    "gemma3",
    (),
    blocks,
    feedforwards,
    accepts=("text_config", "vision_config"),
    namings=_NAMINGS,
    beyond=("projector of images",),
)
