"""What `symmetry` tells people: sizes in a table, the groups in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import RenderableType

from isobasin.cli.tables import layers, ranges, table

if TYPE_CHECKING:
    from isobasin.verbs.families import FamilySymmetry
    from isobasin.verbs.symmetry import BlockSymmetry, Symmetry

Layer = TypeVar("Layer", bound="BlockSymmetry[Any]")


def symmetry_report(found: Symmetry) -> Iterator[RenderableType]:
    """The table, with equal neighbours in one row, and the group of each row."""
    runs, others = _runs(found.layers), _runs(found.feedforward)
    columns = ("layers", "heads", "dimension", "parameters", "redundant")
    sizes = table(*columns, left=("layers",), title="Symmetry, attention per layer")
    for run in runs:
        group, row = run[0].group, _figures(run[0].group.dimension, run[0].parameters)
        sizes.add_row(ranges([layer.layer for layer in run]), str(group.heads), *row)
    sizes.add_section()
    sizes.add_row("all attention", "", *_figures(found.dimension, sum(layer.parameters for layer in found.layers)))
    if others:
        units = sum(layer.parameters for layer in found.feedforward)
        sizes.add_row("all feed-forward", "", *_figures(found.feedforward_dimension, units))
    total = found.dimension + found.feedforward_dimension
    sizes.add_row("whole model", "", *_figures(total, found.parameters), style="bold")
    yield sizes
    for run, kind in (*((run, "") for run in runs), *((run, ", feed-forward") for run in others)):
        yield f"{layers([layer.layer for layer in run]).capitalize()}{kind}: {run[0].group}"


def _runs(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Neighbours that are equal together."""
    return [list(run) for _, run in groupby(layers, key=lambda layer: (layer.group, layer.parameters))]


def families_report(found: Iterable[FamilySymmetry]) -> Iterator[RenderableType]:
    """A row for every model type, long formulas folded, and what the letters mean."""
    from isobasin.verbs.families import COLUMNS, LETTERS

    rows = table(*COLUMNS, left=COLUMNS, title="Symmetry by model type")
    for column in rows.columns[1:]:
        column.no_wrap = False
    for family in found:
        rows.add_row(*family.row())
    yield rows
    yield LETTERS


def _figures(dimension: int, parameters: int) -> tuple[str, str, str]:
    share = f"{100 * dimension / parameters:.2f}%" if parameters else "–"
    return f"{dimension:,}", f"{parameters:,}", share
