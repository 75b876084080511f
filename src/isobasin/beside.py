"""What isobasin writes into a folder beside a model's weights, by name, and where to find it again."""

from __future__ import annotations

import os
from pathlib import Path

ALIGNMENT = "alignment.isobasin"
"""The move that made a model. It is a safetensors file, but loaders that take every `*.safetensors` of a folder for
weights, and filters of downloads, don't find it by this name."""

_EARLIER = "alignment.safetensors"

OWN = frozenset((ALIGNMENT, _EARLIER))
"""Says how the model in its folder was made, under its name of today and of earlier versions: not true of copies."""


def alignment_file(path: Path) -> Path:
    """The alignment in a folder, where earlier versions gave it another name under that; any other path itself."""
    if not path.is_dir():
        return path
    earlier, file = path / _EARLIER, path / ALIGNMENT
    return earlier if os.path.lexists(earlier) and not os.path.lexists(file) else file
