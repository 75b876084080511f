"""The numbers as CSV, at full precision; what isn't a number is left empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from isobasin.checkpoints.output import replace_text
from isobasin.reports.frames import csv_text
from isobasin.reports.view import ShownLine, ShownPair, View

_LINE = ("a", "b", "method")
_CURVE = (
    *("barrier", "barrier_error", "relative", "worst_t", "share_of_ends"),
    *("calibrated_barrier", "calibrated_worst_t", "overhead"),
)
_POINT = ("calibrated_loss", "temperature", "seconds", "interpolation_seconds")


def write_points(shown: View, path: Path) -> None:
    """One row for every measured point."""
    rows = [
        (*_names(pair, line), point.t, point.loss, *map(point.metrics.get, shown.metrics), *_values(point, _POINT))
        for pair, line in _lines(shown)
        for point in line.points
    ]
    _write(path, (*_LINE, "t", "loss", *shown.metrics, *_POINT), rows)


def write_curves(shown: View, path: Path) -> None:
    """One row for every finished line."""
    rows = [
        (*_names(pair, line), *_values(line.curve, _CURVE), *(line.distance or (None, None)))
        for pair, line in _lines(shown)
        if line.curve is not None
    ]
    _write(path, (*_LINE, *_CURVE, "distance_before", "distance_after"), rows)


def _lines(shown: View) -> Iterator[tuple[ShownPair, ShownLine]]:
    return ((pair, line) for pair in shown.pairs for line in pair.lines)


def _names(pair: ShownPair, line: ShownLine) -> tuple[str, ...]:
    return pair.a, pair.b, line.method


def _values(record: Any, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in names)


def _write(path: Path, header: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    replace_text(path, csv_text(pd.DataFrame(rows, columns=list(header))))
