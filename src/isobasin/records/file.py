"""`records.jsonl`: it only grows, and a kill costs at most the line that was being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from isobasin.checkpoints.output import disk_errors
from isobasin.errors import RecordError, first_line
from isobasin.records import sealing
from isobasin.records.schema import SCHEMA_VERSION, AlignmentRecord, CurveRecord, PointRecord, Record, RunRecord

NAME = "records.jsonl"
"""The file's name in a folder of results."""

Key = tuple[tuple[int, int], str]
"""A line between two models: indices of the pair, and the method that moved B."""

_EDITED = "was edited: its checksum isn't right"
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@dataclass
class Measured:
    """What a file says so far; where a line is there twice, the later one counts.

    Attributes:
        run: What was measured.
        points: Of every line, by rising t. An interrupted run has fewer of them than `run.t`.
        alignments: Of the lines whose B was moved.
        curves: Of the lines that are finished.
        unchecked: How many records an older isobasin wrote, without the checksum that tells if one was edited.
    """

    run: RunRecord
    points: dict[Key, list[PointRecord]] = field(default_factory=dict[Key, list[PointRecord]])
    alignments: dict[Key, AlignmentRecord] = field(default_factory=dict[Key, AlignmentRecord])
    curves: dict[Key, CurveRecord] = field(default_factory=dict[Key, CurveRecord])
    unchecked: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know."""
        if not self.unchecked:
            return self.run.data.notes
        lines = "1 line" if self.unchecked == 1 else f"{self.unchecked:,} lines"
        doubt = f"An older isobasin wrote {lines} of {NAME}, without a checksum: nothing tells if they were edited."
        return (*self.run.data.notes, doubt)


class RecordFile:
    """A file of records that is continued, or begun.

    Attributes:
        path: The file.
        measured: What it said when it was opened; None if that was nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, or create it and its folder; nothing that it says is changed.

        Args:
            path: The file, named `*.jsonl`, or the folder that has or gets a `records.jsonl`.

        Raises:
            RecordError: It can't be continued: see `read`.
            OutputError: It can't be written.
        """
        self.path = _file(path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        self.measured = _parse(self.path)

    def append(self, record: Record) -> None:
        """Write one line; it is on the disk when this returns. What a kill left of a line before is cut off.

        Raises:
            ValueError: The first line of a file has to be the run's.
            OutputError: The line can't be written.
        """
        with disk_errors(self.path), self.path.open("r+b") as file:
            end = _end(file)
            if (end == 0) != isinstance(record, RunRecord):
                raise ValueError("a file of records has one run, in its first line")
            file.truncate(end)
            file.seek(end)
            file.write(sealing.sealed(record.model_dump_json().encode()) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Measured:
        """What a file says. A last line without an end, as a kill leaves it, doesn't count.

        Args:
            path: As when it is opened.

        Raises:
            RecordError: It is missing or empty, of another schema version, or one of its lines isn't a record or was
                edited.
        """
        file = _file(path)
        found = _parse(file)
        if found is None:
            raise RecordError(f"{file}: no run is recorded here: name the folder of a measurement")
        return found


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) if Path(path).suffix == Path(NAME).suffix else Path(path) / NAME


def _end(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read() in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _parse(path: Path) -> Measured | None:
    """All whole lines of a file; None if there is none."""
    measured: Measured | None = None
    for number, line in enumerate(_whole_lines(path), start=1):
        where = f"{path}: line {number}"
        content, right = sealing.unsealed(line)
        if measured is None:
            _check_version(content, path)
        # Where the first line has a checksum all of them were written with one.
        if right is False or (right is None and measured is not None and not measured.unchecked):
            raise _unusable(f"{where} {_EDITED}")
        record = _record(content, where)
        if measured is not None:
            problem = _add(measured, record)
            if problem is not None:
                raise _unusable(f"{where} {problem}")
        elif isinstance(record, RunRecord):
            measured = Measured(record)
        else:
            raise _unusable(f"{where} is of kind {record.kind!r}, and the first line has to be the run's")
        measured.unchecked += right is None
    return measured


def _unusable(problem: str) -> RecordError:
    return RecordError(f"{problem}: restore the file, or measure into another folder")


def _add(measured: Measured, record: Record) -> str | None:
    """Take a line in, or say why it isn't one of this run."""
    run = measured.run
    if isinstance(record, RunRecord):
        return "begins a second run"
    if not all(0 <= index < len(run.models) for index in record.pair):
        return f"has the pair {record.pair}, of {len(run.models)} models"
    if record.method not in run.methods:
        return f"has the method {record.method!r}, which the run doesn't name"
    key = record.pair, record.method
    if isinstance(record, AlignmentRecord):
        measured.alignments[key] = record
    elif isinstance(record, CurveRecord):
        measured.curves[key] = record
    else:
        return _add_point(measured, key, record)
    return None


def _add_point(measured: Measured, key: Key, point: PointRecord) -> str | None:
    if point.t not in measured.run.t:
        return f"has t = {point.t:g}, which the run doesn't name"
    if len(point.group_losses) != len(measured.run.group_weights):
        return f"has {len(point.group_losses)} groups of examples instead of {len(measured.run.group_weights)}"
    others = [other for other in measured.points.get(key, []) if other.t != point.t]
    measured.points[key] = sorted([*others, point], key=lambda other: other.t)
    return None


def _whole_lines(path: Path) -> Iterator[bytes]:
    if path.exists() and not path.is_file():
        raise RecordError(f"{path}: isn't a file: name the folder of a measurement")
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RecordError(f"{path}: can't be read ({reason}): name the folder of a measurement") from error
    yield from content.split(b"\n")[:-1]


def _check_version(line: bytes, path: Path) -> None:
    """Lines of another version may have other fields, so this comes before they are looked at."""
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return
    version = first.get("schema_version", SCHEMA_VERSION) if isinstance(first, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: has schema version {version}, and this isobasin reads {SCHEMA_VERSION}: "
            "use the isobasin that wrote it, or measure into another folder"
        )


def _record(line: bytes, where: str) -> Record:
    try:
        return _RECORD.validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["loc"][-1:] == (sealing.NAME,):
            raise _unusable(f"{where} {_EDITED}") from error
        raise _unusable(f"{where} isn't a record ({first_line(error)})") from error
