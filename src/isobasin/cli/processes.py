"""The processes that `accelerate launch` started, for commands that share their work among them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def processes(device: str) -> Generator[Any]:
    """Several processes, if `accelerate launch` (or torchrun) started us as one of them; else None."""
    count = os.environ.get("WORLD_SIZE", "")
    if not count.isdecimal() or int(count) < 2:
        yield None
        return
    from accelerate import Accelerator

    from isobasin.verbs.settings import chosen_device

    accelerator = Accelerator(cpu=chosen_device(device) == "cpu")
    try:
        yield accelerator
    finally:
        # Threads of a process group that nobody ended may abort Python as it exits, with all the work done.
        accelerator.end_training()
