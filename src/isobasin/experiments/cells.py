"""Cells: pieces of an experiment, each a pure function of its configuration and seed; and where their results are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from isobasin.checkpoints import calling
from isobasin.checkpoints.output import disk_errors, install
from isobasin.space import full_disk

SCHEMA_VERSION = 1
"""Of `record.json`; part of every key."""

RECORD, MODEL = "record.json", "model"
"""What is in a cell's folder: its result, and the model if it trains one."""

TRAINED = ("pretrain", "finetune")
"""Kinds of cells that leave a model."""

_STAMP = "begun-from.json"


@dataclass(frozen=True, eq=False)
class Cell:
    """A piece of an experiment.

    Attributes:
        kind: What is done.
        spec: With which settings and seeds: plain values for JSON.
        needs: Cells whose results it starts from.
        label: For people; the key doesn't depend on it.
    """

    kind: str
    spec: dict[str, Any]
    needs: tuple[Cell, ...] = ()
    label: str = field(default="", kw_only=True)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the kind, the specification and the keys of what it needs."""
        content = [SCHEMA_VERSION, self.kind, self.spec, [need.key for need in self.needs]]
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.kind}-{self.key[:16]}"


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record depends neither on the machine nor on the engine: all but how it went and how long it took."""
    result = {name: value for name, value in record["result"].items() if name != "seconds"}
    return {name: value for name, value in record.items() if name != "run"} | {"result": result}


class Store:
    """The folder of an experiment's cells. A cell's folder appears complete or not at all."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "cells"

    def path(self, cell: Cell) -> Path:
        """Where a cell's results are, or will be."""
        return self.folder / cell.name

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's record; None if it isn't done, or its record isn't readable."""
        try:
            found = json.loads((self.path(cell) / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == cell.key else None

    def has_model(self, cell: Cell) -> bool:
        """Whether the model that a cell trained is still there."""
        return (self.path(cell) / MODEL / "config.json").is_file()

    def drop_model(self, cell: Cell) -> None:
        """Delete the model that a cell trained; its record stays."""
        shutil.rmtree(self.path(cell) / MODEL, ignore_errors=True)

    def complete(self, cell: Cell) -> bool:
        """Whether a cell is done, and what others need of it is there."""
        return self.record(cell) is not None and (cell.kind not in TRAINED or self.has_model(cell))

    @contextmanager
    def writing(self, cell: Cell) -> Generator[Path | None]:
        """A hidden folder to work in, which becomes the cell's when the block ends without an error.

        One process at a time has it; others wait. What an interrupted attempt left in it is still there if that
        started from the same results, and is removed otherwise.

        Yields:
            The folder; None if another process has done the cell while this one waited.

        Raises:
            OutputError: The folder can't be written.
        """
        from filelock import FileLock

        staging = self.folder / f".{cell.name}.partial"
        with disk_errors(self.folder):
            staging.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{cell.name}.lock")
        with lock:
            if self.complete(cell):
                yield None
            else:
                # The folder that was asked for is what is known of, not one that is hidden in it.
                with calling(staging, self.folder.parent):
                    with disk_errors(staging):
                        self._prepare(cell, staging)
                    with full_disk(staging):
                        yield staging
                    with disk_errors(staging):
                        (staging / _STAMP).unlink()
                        install(staging, self.path(cell), force=True)
            # Who waited for this file finds the cell done, so nobody needs it any more.
            Path(lock.lock_file).unlink(missing_ok=True)

    def _prepare(self, cell: Cell, staging: Path) -> None:
        """Make the folder, without what was begun from other results."""
        records = [(self.path(need) / RECORD).read_bytes() for need in cell.needs]
        stamp = canonical([cell.key, *(hashlib.sha256(record).hexdigest() for record in records)])
        if not (staging / _STAMP).is_file() or (staging / _STAMP).read_text() != stamp:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            (staging / _STAMP).write_text(stamp)
