"""Files read ahead: the disk works while libraries are imported, and while the blocks before are matched.

Importing torch and transformers takes seconds in which nothing is read. So the system is asked for the weights as soon
as the command line names them; it reads them into its cache, and what a verb reads later lies in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from threading import Thread

# The system reads no more than a few megabytes for one request.
_PIECE = 4 * 2**20
# Of the machine's memory, how much a process asks to be filled: files beyond that push out what was read before.
_SHARE = 0.25


def read_ahead(*folders: str | Path) -> None:
    """Ask the system to read the weights of some folders, in a thread; of what is no folder, nothing.

    It is advice: nothing fails, nothing is held by this process, and where the system takes none (macOS, Windows)
    nothing happens.
    """
    if hasattr(os, "posix_fadvise"):
        Thread(target=_advise, args=(folders,), daemon=True, name="read ahead").start()


def _advise(folders: tuple[str | Path, ...]) -> None:
    left = int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    # Whoever reads what can't be read says what is wrong with it.
    with suppress(OSError, ValueError):
        for file in chain.from_iterable(map(_weights, folders)):
            with file.open("rb") as opened:
                left -= _ask(opened.fileno(), left)


def _weights(folder: str | Path) -> Iterator[Path]:
    """The weights in a folder; no pipe, at which one waits, and no link that leads to a place of its own."""
    home = Path(folder).resolve()
    places = home, home.parent.parent / "blobs"  # where a snapshot of the hub has its files
    for file in sorted(home.glob("*.safetensors")):
        there = file.resolve()
        if there.parent in places and there.is_file():
            yield there


def _ask(file: int, most: int) -> int:
    """Ask for the beginning of an open file; returns how much of it that is."""
    size = min(os.fstat(file).st_size, most)
    for start in range(0, size, _PIECE):
        os.posix_fadvise(file, start, min(_PIECE, size - start), os.POSIX_FADV_WILLNEED)
    return size
