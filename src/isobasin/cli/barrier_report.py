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
    """The data in words, the models by number, and the table of all barriers."""
    from isobasin.records.curves import NAIVE
    from isobasin.reports.style import styles
    from isobasin.reports.view import given, moved

    run, looks = found.run, styles([NAIVE, *found.run.methods], moved(found.run), given(found.run))
    yield f"{run.data.examples:,} examples of {run.data.source} ({run.data.split}), {run.data.task}"
    yield from found.notes
    yield _models(found)
    rows = table("A", "B", "B is", "barrier", f"of {looks[NAIVE].short}", "worst t", "calibrated", left=("B is",))
    for (pair, method), curve in found.curves.items():
        rows.add_row(*(str(index + 1) for index in pair), looks[method].short, *_figures(curve))
    yield rows


def _models(found: Measured) -> RenderableType:
    """What each model does on its own: at one end of a line on which it isn't moved."""
    from isobasin.reports.style import metric_name, number

    metrics = next(iter(found.points.values()))[0].metrics
    rows = table("model", "loss", *map(metric_name, metrics), "name", left=("name",))
    # Names that don't fit are folded: they are what tells the models apart.
    rows.columns[-1].no_wrap, rows.columns[-1].overflow = False, "fold"
    for index, model in enumerate(found.run.models):
        end = next(
            points[0 if pair[0] == index else -1]
            for (pair, method), points in found.points.items()
            if pair[0] == index or (pair[1] == index and method == found.run.methods[0])
        )
        rows.add_row(str(index + 1), number(end.loss), *(number(v) for v in end.metrics.values()), model.name)
    return rows


def _figures(curve: CurveRecord) -> list[str]:
    from isobasin.reports.style import number, percent

    error = "" if curve.barrier_error is None else f" ± {number(curve.barrier_error)}"
    barrier = "infinite" if curve.barrier is None else f"{number(curve.barrier)}{error}"
    return [barrier, percent(curve.relative), f"{curve.worst_t:.2f}", number(curve.calibrated_barrier)]
