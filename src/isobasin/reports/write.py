"""Everything that is shown of a measurement, in the folder of its records."""

from __future__ import annotations

import os
from pathlib import Path

from isobasin.records.file import RecordFile
from isobasin.reports.figures import FORMATS, barrier_rows, calibrated_rows, draw
from isobasin.reports.page import write_page
from isobasin.reports.tables import write_curves, write_points
from isobasin.reports.view import View, view


def write_report(folder: str | os.PathLike[str]) -> list[Path]:
    """Write `points.csv`, `curves.csv`, `barriers.png` and `.svg`, `calibrated.png` and `.svg`, and `report.html`.

    Earlier ones are replaced. An interrupted measurement is shown as far as it came, and said to be unfinished.

    Args:
        folder: Has `records.jsonl`.

    Returns:
        The files that were written; `calibrated` only if there are calibrated losses.

    Raises:
        RecordError: The records can't be read.
        DependencyError: matplotlib or Jinja2 is missing.
        OutputError: The folder can't be written.
    """
    out = Path(folder)
    shown = view(RecordFile.read(out))
    points, curves, page = (out / name for name in ("points.csv", "curves.csv", "report.html"))
    write_points(shown, points)
    write_curves(shown, curves)
    figures = [out / f"barriers.{suffix}" for suffix in FORMATS]
    draw(barrier_rows(shown), shown.styles, _title(shown, "The loss along the line between two models"), figures)
    if shown.calibrated:
        calibrated = [out / f"calibrated.{suffix}" for suffix in FORMATS]
        title = _title(shown, "The loss along the line, with the softmax temperature calibrated at every point")
        draw(calibrated_rows(shown), shown.styles, title, calibrated)
        figures += calibrated
    write_page(shown, page)
    return [points, curves, *figures, page]


def _title(shown: View, text: str) -> str:
    done, total = shown.progress
    return text if done == total else f"{text} (unfinished: {done} of {total} points)"
