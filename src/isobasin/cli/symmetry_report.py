"""What `symmetry` tells people: sizes in a table, the groups in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import RenderableType

from isobasin.cli.tables import layers, ranges, table

if TYPE_CHECKING:
    from isobasin.verbs.families import FamilySymmetry
    from isobasin.verbs.symmetry import Symmetry


def symmetry_report(found: Symmetry) -> Iterator[RenderableType]:
    """The table, with equal neighbours in one row, and the group of each row."""
    runs = [list(run) for _, run in groupby(found.layers, key=lambda layer: (layer.group, layer.parameters))]
    sizes = table(
        "layers",
        "heads",
        "dimension",
        "parameters",
        "redundant",
        left=("layers",),
        title="Symmetry, attention per layer",
    )
    for run in runs:
        group, parameters = run[0].group, run[0].parameters
        row = _figures(group.dimension, parameters)
        sizes.add_row(ranges([layer.layer for layer in run]), str(group.heads), *row)
    others = [list(run) for _, run in groupby(found.feedforward, key=lambda layer: (layer.group, layer.parameters))]
    sizes.add_section()
    attention = sum(layer.parameters for layer in found.layers)
    sizes.add_row("all attention", "", *_figures(found.dimension, attention))
    if others:
        units = sum(layer.parameters for layer in found.feedforward)
        sizes.add_row("all feed-forward", "", *_figures(found.feedforward_dimension, units))
    total = found.dimension + found.feedforward_dimension
    sizes.add_row("whole model", "", *_figures(total, found.parameters), style="bold")
    yield sizes
    for run in runs:
        yield f"{layers([layer.layer for layer in run]).capitalize()}: {run[0].group}"
    for run in others:
        yield f"{layers([layer.layer for layer in run]).capitalize()}, feed-forward: {run[0].group}"


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
