"""A checkpoint's files with other values in its tensors: loading them shows where transformers puts each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isobasin.checkpoints.reader import Checkpoint


@contextmanager
def stand_in(checkpoint: Checkpoint, values: dict[str, Tensor]) -> Generator[Path]:
    """A temporary copy of a checkpoint's folder whose tensors are these instead."""
    with tempfile.TemporaryDirectory(prefix="isobasin-") as folder:
        for file in checkpoint.folder.glob("*.json"):
            if "index" not in file.name:
                shutil.copy(file, folder)
        save_file(values, Path(folder) / "model.safetensors", {"format": "pt"})
        yield Path(folder)
