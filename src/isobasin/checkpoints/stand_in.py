"""A checkpoint's files with other values in its tensors: loading them shows where transformers puts each."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isobasin.checkpoints.companions import companions, copy
from isobasin.checkpoints.reader import CONFIG, Checkpoint
from isobasin.checkpoints.temporary import calling, temporary_folder
from isobasin.checkpoints.weights import NAMED, SINGLE


@contextmanager
def stand_in(checkpoint: Checkpoint, values: dict[str, Tensor]) -> Generator[Path]:
    """A temporary copy of a checkpoint's folder whose tensors are these instead."""
    with temporary_folder() as folder:
        found = companions(checkpoint.folder, frozenset(file.path.name for file in checkpoint.watched()))
        for path, file in found.files.items():
            if len(path.parts) == 1 and path.suffix == ".json":
                copy(file, folder / path)
        config = {name: entry for name, entry in checkpoint.config.items() if name != NAMED}
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        save_file(values, folder / SINGLE, {"format": "pt"})
        with calling(folder, checkpoint.folder):
            yield folder
