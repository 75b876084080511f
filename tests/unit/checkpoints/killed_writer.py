"""Writes checkpoints in child processes that stop at a named moment, say so, and wait to be killed.

Arguments: SOURCE, then OUT MOMENT FORCE for each child. Prints the child's process id when it is there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from isobasin.checkpoints import Checkpoint, write_checkpoint


def write(source: str, out: str, moment: str, force: bool) -> None:
    checkpoint = Checkpoint.open(source)

    def reach(name: str) -> None:
        if name == moment:
            os.write(1, f"{os.getpid()}\n".encode())
            time.sleep(60)

    def moved() -> Iterator[dict[str, Tensor]]:
        for layer in range(3):
            name = f"layers.{layer}.weight"
            yield {name: checkpoint.read([name])[name] + 1}
            reach(f"layer {layer}")

    hooks = {name: lambda folder, name=name: reach(name) for name in ("extra", "check")}
    write_checkpoint(checkpoint, Path(out), moved(), force=force, **hooks)
    reach("end")


def main(source: str, *runs: str) -> None:
    for out, moment, force in zip(runs[0::3], runs[1::3], runs[2::3], strict=True):
        if os.fork() == 0:
            write(source, out, moment, force == "force")
            os._exit(0)
    for _ in runs[0::3]:
        os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
