"""How tables, numbers and lists of layers look."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich import box
from rich.table import Table

# With the other columns a row still fits 80 characters.
_HEADS_WIDTH = 14


def table(*columns: str, left: Iterable[str] = (), title: str | None = None) -> Table:
    """An empty table with numbers to the right, and the named columns to the left."""
    found = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
    )
    kept = set(left)
    for column in columns:
        found.add_column(column, justify="left" if column in kept else "right", no_wrap=True)
    return found


def number(value: float) -> str:
    """Four digits in at most eight characters; a dash for what is not a number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if value == 0 or 0.01 <= abs(value) < 1e4 else f"{value:.2e}"


def small(value: float) -> str:
    """Two digits, for errors; a dash for what is not a number."""
    return "–" if not math.isfinite(value) else "0" if value == 0 else f"{value:.1e}"


def change(before: float, after: float) -> str:
    """The change from one to the other in per cent."""
    return f"{100 * (after - before) / before:+.1f}%" if before > 0 and math.isfinite(before + after) else "–"


def heads(permutation: Sequence[int], width: int = _HEADS_WIDTH) -> str:
    """Which of the model's heads each of the reference's is, shortened to what fits."""
    if list(permutation) == sorted(permutation):
        return "in order"
    text = " ".join(map(str, permutation))
    if len(text) <= width:
        return text
    return text[: width - 1].rsplit(" ", 1)[0] + " …"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, runs of three or more as a range: `0–3, 5, 7`."""
    # In a run numbers rise as their places do.
    runs = ([n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), key=lambda at: at[1] - at[0]))
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def layers(numbers: Sequence[int]) -> str:
    """`layer 3` or `layers 0–2, 5`."""
    return f"layer{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
