"""What isobasin writes into a folder beside a model's weights, by name, and where to find it again."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

ALIGNMENT = "alignment.isobasin"
"""The move that made a model. It is a safetensors file, but loaders that take every `*.safetensors` of a folder for
weights, and filters of downloads, don't find it by this name."""

CARD = "README.md"
"""The model card."""

REFERENCE = "reference"
"""The folder of the other model, where both were moved."""

RECIPE = "recipe.yaml"
"""The command that wrote the folder, to be run again."""

_EARLIER = "alignment.safetensors"

ALIGNMENTS = (ALIGNMENT, _EARLIER)
"""The move that made a model, under its name of today and of earlier versions."""


def alignment_name(index: int) -> str:
    """What the alignment of one of several models is called, beside what was made of them."""
    return ALIGNMENT if index == 0 else ALIGNMENT.replace(".", f"-{index + 1}.")


def is_own(name: str) -> bool:
    """Whether a file says how the model in its folder was made, and how good it is, which isn't true of copies."""
    return name in (CARD, RECIPE, *ALIGNMENTS) or fnmatch(name, "alignment-*.isobasin")


def alignment_file(path: Path) -> Path:
    """The alignment in a folder, where earlier versions gave it another name under that; any other path itself."""
    if not path.is_dir():
        return path
    earlier, file = path / _EARLIER, path / ALIGNMENT
    return earlier if os.path.lexists(earlier) and not os.path.lexists(file) else file
