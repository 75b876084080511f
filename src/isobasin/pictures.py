"""Pictures of results: drawn on axes that a user gives, or put into the page of a notebook."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isobasin.errors import needing

Draw = Callable[[Any], None]
"""Draws on axes of matplotlib."""


def new_axes() -> Any:
    """Axes of a new figure, as pyplot makes them: a notebook shows it by itself.

    Raises:
        DependencyError: matplotlib is missing.
    """
    with needing("figures need matplotlib"):
        from matplotlib import pyplot
    return pyplot.subplots(figsize=(5, 3.4), layout="constrained")[1]


def inline(draws: Sequence[Draw], alt: str) -> str:
    """Pictures side by side as an element of a page; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure: Any = Figure(figsize=(4.6 * len(draws), 3.1), layout="constrained")
    for draw, axes in zip(draws, figure.subplots(1, len(draws), squeeze=False).flat, strict=True):
        draw(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'


def line(x: Sequence[float], y: Sequence[float], below: str, label: str) -> Draw:
    """A quantity along another one."""

    def draw(axes: Any) -> None:
        axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.6)
        axes.set(xlabel=below, ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)

    return draw


def band(
    axes: Any, x: Sequence[float], y: Sequence[float], errors: Sequence[float | None], color: str | None = None
) -> None:
    """One standard error on both sides of a line, where it is known."""
    widths = [math.nan if error is None else error for error in errors]
    low, high = ([value + sign * width for value, width in zip(y, widths, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def bars(names: Sequence[int], series: Mapping[str, Sequence[float]], below: str, label: str) -> Draw:
    """Bars side by side, from zero, for every one of some layers."""

    def draw(axes: Any) -> None:
        width = 0.8 / len(series)
        for index, (name, values) in enumerate(series.items()):
            shift = (index - (len(series) - 1) / 2) * width
            axes.bar([place + shift for place in range(len(names))], values, width, label=name)
        step = max(1, len(names) // 12)
        axes.set_xticks(range(0, len(names), step), [str(name) for name in names[::step]])
        axes.set(xlabel=below, ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False)

    return draw


def permutations(names: Sequence[int], rows: Sequence[Sequence[int]]) -> Draw:
    """Which of B's heads each of A's is, a layer a row; heads that changed places are coloured."""

    def draw(axes: Any) -> None:
        most = max(map(len, rows))
        shown = [[float(head != place) for place, head in enumerate(row)] + [0.0] * (most - len(row)) for row in rows]
        axes.imshow(shown, cmap="Blues", vmin=0, vmax=3, aspect="auto")
        if most * len(rows) <= 300:
            for y, row in enumerate(rows):
                for x, head in enumerate(row):
                    axes.text(x, y, str(head), ha="center", va="center", fontsize=8)
        step = max(1, len(names) // 12)
        axes.set_yticks(range(0, len(names), step), [str(name) for name in names[::step]])
        axes.set_xticks(range(0, most, max(1, most // 12)))
        axes.set(xlabel="head of A, with the number of B's", ylabel="layer")

    return draw
