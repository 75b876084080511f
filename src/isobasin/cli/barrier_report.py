"""What `barrier` tells people: one row for each line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from isobasin.cli.tables import table

if TYPE_CHECKING:
    from isobasin.records.file import Measured
    from isobasin.records.schema import CurveRecord


def barrier_report(found: Measured) -> Iterator[RenderableType]:
    """The data in words, and the table of all barriers."""
    from isobasin.reports.style import labels, styles

    run = found.run
    yield f"{run.data.examples:,} examples of {run.data.source} ({run.data.split}), {run.data.task}"
    yield from run.data.notes
    names, looks = labels([model.name for model in run.models]), styles(run.methods)
    rows = table(
        "A", "B", "B is", "loss A", "loss B", "barrier", "of naive", "worst t", "calibrated", left=("A", "B", "B is")
    )
    for (pair, method), curve in found.curves.items():
        points = found.points[pair, method]
        rows.add_row(*(names[i] for i in pair), looks[method].short, *_figures(curve, points[0].loss, points[-1].loss))
    yield rows


def _figures(curve: CurveRecord, first: float | None, last: float | None) -> list[str]:
    from isobasin.reports.style import number, percent

    error = "" if curve.barrier_error is None else f" ± {number(curve.barrier_error)}"
    barrier = "infinite" if curve.barrier is None else f"{number(curve.barrier)}{error}"
    rest = percent(curve.relative), f"{curve.worst_t:.2f}", number(curve.calibrated_barrier)
    return [number(first), number(last), barrier, *rest]
