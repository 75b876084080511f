"""Tables as CSV for machines and as Markdown for people, and what many rows say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from isobasin.reports.style import alike, number
from isobasin.text import csv_cell, markdown

_MISSING = "–"


def csv_text(frame: Any) -> str:
    """A table as CSV, at full precision; what isn't known is left empty, and no text is a spreadsheet's formula."""
    text: Any = frame.rename(columns=csv_cell).map(csv_cell).to_csv(index=False, lineterminator="\n")
    return text


def spread(
    rows: Sequence[Sequence[Any] | Mapping[str, Any]],
    by: Sequence[str],
    values: Sequence[str],
    **more: Callable[[Any], Any] | str,
) -> Any:
    """Mean and standard deviation over rows that agree in the entries `by`, in the order in which they come.

    Args:
        rows: Each with the entries of `by`, `values` and `more`, in this order or by name.
        by: Entries that stay.
        values: Entries of which there is a mean, and in a column that ends in " sd" the deviation; unknown ones are
            left out.
        more: Further entries, and what is made of their values.

    Returns:
        A frame with a column "pairs" that says of how many rows each of its own is made.
    """
    columns: Any = [*by, *values, *more]
    groups: Any = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(values, float)).groupby([*by], sort=False)
    found = groups[[*values]].agg(["mean", "std"])
    found.columns = [name if kind == "mean" else f"{name} sd" for name, kind in found.columns]
    further = {name: groups[name].agg(made) for name, made in more.items()}
    return found.assign(pairs=groups.size(), **further).reset_index()


@dataclass(frozen=True, eq=False)
class Table:
    """A table.

    Attributes:
        name: Of its CSV file.
        title: Above it.
        note: Below the title.
        columns: Those that are shown, in this order.
        frame: Their values, and beside means their standard deviations in columns that end in " sd".
    """

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    frame: Any

    def cells(self, text: Callable[[str], str] = str) -> list[list[str]]:
        """What people read in every row; `text` is made of values that are no numbers."""
        rows = self.frame.to_dict("records")
        return [[_shown(row[name], row.get(f"{name} sd"), "%" in name, text) for name in self.columns] for row in rows]

    def grouped(self) -> list[tuple[str | None, list[list[str]]]]:
        """The rows under what their first cells say, where several agree in that; under None as they are otherwise."""
        cells = self.cells()
        groups = [(first, [row[1:] for row in rows]) for first, rows in groupby(cells, key=lambda row: row[0])]
        return [*groups] if len(self.columns) > 1 and 1 < len(groups) < len(cells) else [(None, cells)]

    def textual(self) -> list[bool]:
        """Which columns have something else than numbers."""
        return [not pd.api.types.is_numeric_dtype(self.frame[name]) for name in self.columns]

    def markdown(self) -> str:
        """For people."""
        names = [markdown(name) for name in self.columns]
        cells = self.cells(markdown)
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        lines = [_padded(names, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        lines += [_padded(row, widths) for row in cells]
        return "\n".join([f"## {self.title}", "", *([self.note, ""] if self.note else []), *lines])

    def csv(self) -> str:
        """For machines."""
        names = [part for name in self.columns for part in (name, f"{name} sd") if part in self.frame]
        return csv_text(self.frame[names])


def _shown(value: Any, deviation: float | None, percent: bool, text: Callable[[str], str]) -> str:
    """A value for people; a mean with its deviation as `number` shows the mean, or with one decimal in per cent."""
    if pd.isna(value):
        return _MISSING
    if not isinstance(value, float):
        return text(str(value))
    tenths = percent and deviation is not None
    mean = f"{value:.1f}" if tenths else number(value)
    if deviation is None or pd.isna(deviation):
        return mean
    return f"{mean} ± {f'{deviation:.1f}' if tenths else alike(deviation, value)}"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
