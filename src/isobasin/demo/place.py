"""Where the demo writes, and what it may replace there: only what an earlier run of it wrote."""

from __future__ import annotations

import os
import shutil
from itertools import combinations
from pathlib import Path

from isobasin.checkpoints import check_output
from isobasin.checkpoints.output import disk_errors
from isobasin.errors import OutputError

MARKER = ".isobasin-demo"
FIGURES = "figures.json"
PLOT = "barriers"
SCRAMBLED, RESTORED = "model-1-scrambled", "model-1-restored"


def model_name(number: int) -> str:
    """Folder of one of the trained models."""
    return f"model-{number}"


def aligned_name(first: int, second: int) -> str:
    """Folder of the second model of a pair, aligned to the first."""
    return f"model-{second}-aligned-to-{first}"


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of models, numbered from 1."""
    return list(combinations(range(1, count + 1), 2))


def prepare(output: str | os.PathLike[str], count: int, force: bool) -> Path:
    """Make the output folder, without what an earlier demo left there; other files in it stay.

    Args:
        output: The folder.
        count: How many models the demo trains.
        force: Whether a folder that no demo made may be written into.

    Raises:
        OutputError: It isn't empty and no demo made it, or it can't be written.
    """
    folder = Path(output)
    check_output(folder, force=True)
    if folder.is_dir() and any(folder.iterdir()) and not (force or (folder / MARKER).is_file()):
        raise OutputError(f"{output}: exists and isn't a demo's: name another folder, or write into it with --force")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("Made by `isobasin demo`, which replaces its own files here when it runs again.\n")
        for name in own_names(count):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return folder


def own_names(count: int) -> list[str]:
    """Everything that a demo writes, by name."""
    models = [model_name(number) for number in range(1, count + 1)]
    aligned = [aligned_name(first, second) for first, second in pairs(count)]
    return [*models, *aligned, SCRAMBLED, RESTORED, f"{PLOT}.png", f"{PLOT}.svg", FIGURES]
