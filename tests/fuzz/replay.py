"""A kept case, run again as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from . import bounds, subjects


def again(folder: Path) -> int:
    """Run the command of a kept case on a copy of the inputs that were kept, and print what it does."""
    said = json.loads((folder / "case.json").read_text())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        inputs = Path(place) / "inputs"
        shutil.copytree(folder / "inputs", inputs, symlinks=True)
        if (inputs / "adapter").is_dir():
            with suppress(OSError, ValueError):  # damaged, or no longer there
                subjects.join(inputs / "adapter", inputs / "b")
        (Path(place) / "outputs").mkdir()
        arguments = [
            word.replace(said["inputs"], str(inputs)).replace(said["outputs"], f"{place}/outputs")
            for word in said["arguments"]
        ]
        print(said["case"], said["problem"], f"$ isobasin {' '.join(arguments)}", sep="\n")
        done = bounds.run(arguments)
    print(done.out, done.err, done.raised, sep="\n")
    print(f"exit code {done.code} in {done.seconds:.1f} s")
    return 0 if done.code == said["code"] else 1
