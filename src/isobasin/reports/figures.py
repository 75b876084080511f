"""Figures in the paper's form: a quantity against t, one column of panels for every pair, one line for every method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobasin.checkpoints import write_file_atomically
from isobasin.errors import BARRIER_EXTRA, needing
from isobasin.pictures import band
from isobasin.reports.style import PERCENT, STEEP, Style, metric_name, number
from isobasin.reports.view import ShownPair, View

_COLUMNS = 4
_WIDTH, _HEIGHT = 3.7, 2.9
# Letters of the figure's title on an inch.
_LETTERS = 10
_NBSP = "\u00a0"
# Of the ends of a logarithmic axis: up to here two ticks a decade are too few.
_FEW = 12
# Letters of a model's name in a title.
_NAME = 22

ALONG = r"$t$: weights $(1-t)\,\theta_A + t\,\theta_B$"
"""Below the horizontal axis."""

FORMATS = ("png", "svg")
"""The endings of every figure's files."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        lines: By method: the points t, and the values there; NaN leaves a gap.
        errors: By method: standard errors of those values; None leaves a gap in the band around them.
        faint: Lines behind those, to compare with.
        title: Above it.
        note: Below the title, smaller.
        below: Label of the horizontal axis.
    """

    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    errors: Mapping[str, Sequence[float | None]] = field(default_factory=dict[str, "Sequence[float | None]"])
    faint: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None
    title: str = ""
    note: str = ""
    below: str = ""


@dataclass(frozen=True)
class Row:
    """Panels side by side that share their vertical axis.

    Attributes:
        label: Of that axis.
        panels: From left to right.
        percent: Whether the values are shares, to be shown in per cent.
        log: Whether the axis is logarithmic.
    """

    label: str
    panels: Sequence[Panel]
    percent: bool = False
    log: bool = False


def require_matplotlib(extra: str = BARRIER_EXTRA) -> Any:
    """The figure class of matplotlib, which needs no display.

    Args:
        extra: What to install if it is missing.

    Raises:
        DependencyError: matplotlib is missing.
    """
    with needing("figures need matplotlib", extra):
        from matplotlib.figure import Figure
    return Figure


def draw(rows: Sequence[Row], looks: Mapping[str, Style], title: str, paths: Sequence[Path]) -> None:
    """Draw rows of panels and save the figure under every name given; the suffix is the format.

    Raises:
        DependencyError: matplotlib is missing.
        OutputError: A file can't be written.
    """
    columns = max(len(row.panels) for row in rows)
    size = max(_WIDTH * columns, 5), _HEIGHT * len(rows) + 1
    with saved_figure(size, paths) as figure:
        grid = figure.subplots(len(rows), columns, sharex=False, sharey="row", squeeze=False)
        for row, axes in zip(rows, grid, strict=True):
            _draw_row(row, axes, looks)
        _draw_legend(figure, grid, looks, columns)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
        figure.suptitle(plain(textwrap.fill(title, round(_LETTERS * size[0]))), fontsize=12)


@contextmanager
def saved_figure(size: tuple[float, float], paths: Sequence[Path]) -> Generator[Any]:
    """A figure to draw, which is saved under every name given in the end; the suffix is the format."""
    figure_class = require_matplotlib()
    from matplotlib import rc_context

    # Text stays text in SVG, and the same records give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "isobasin"}):
        figure = figure_class(figsize=size, layout="constrained")
        yield figure
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            write_file_atomically(path, lambda to, m=metadata: figure.savefig(to, dpi=160, metadata=m), force=True)


def _draw_legend(figure: Any, grid: Any, looks: Mapping[str, Style], columns: int) -> None:
    """One for all panels, below them, with the lines that any of them has."""
    handles: dict[str, Any] = {}
    for axis in grid.flat:
        found, names = axis.get_legend_handles_labels()
        handles.update(zip(names, found, strict=True))
    shown = [plain(style.name) for style in looks.values() if plain(style.name) in handles]
    ncols = max(len(shown), 1) if columns > 2 else 1 + columns
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=ncols, frameon=False)


def _draw_row(row: Row, axes: Any, looks: Mapping[str, Style]) -> None:
    for panel, axis in zip(row.panels, axes, strict=False):
        for method, (t, values) in (panel.faint or {}).items():
            axis.plot(t, values, color=looks[method].color, linewidth=0.9, alpha=0.4)
        for method, errors in panel.errors.items():
            band(axis, *panel.lines[method], errors, looks[method].color)
        for method, (t, values) in panel.lines.items():
            style = looks[method]
            dash: Any = (0, style.dash) if style.dash else "-"
            axis.plot(
                t,
                values,
                label=plain(style.name),
                color=style.color,
                linestyle=dash,
                marker=style.marker,
                markersize=3.5,
                linewidth=1.6,
                markevery=2 if len(t) > 12 else 1,
            )
        axis.set_title(panel.title, fontsize=10.5, pad=6 + 11 * (panel.note.count("\n") + 1) if panel.note else 6)
        axis.text(0.5, 1.03, panel.note, fontsize=8, ha="center", linespacing=1.25, transform=axis.transAxes)
        axis.set_xlabel(panel.below, fontsize=9)
        axis.tick_params(labelbottom=bool(panel.below))
        axis.set_xlim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(row.panels) :]:
        axis.set_visible(False)
    axes[0].set_ylabel(plain(row.label))
    _scale(row, axes[0])


def _scale(row: Row, axis: Any) -> None:
    """The vertical axis, which the row shares: from zero, unless nothing is near it."""
    if row.percent:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    values = [
        value
        for panel in row.panels
        for lines in (panel.lines, panel.faint or {})
        for _, line in lines.values()
        for value in line
        if math.isfinite(value)
    ]
    if row.log and values and min(values) > 0:
        log_scale(axis)
    elif values and 0 <= min(values) < 0.5 * max(values):
        axis.set_ylim(bottom=0)


def log_scale(axis: Any) -> None:
    """A logarithmic vertical axis around what is drawn already, with plain numbers at its ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    few = high / low < _FEW
    axis.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5) if high < 100 * low else (1,))
    )
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def barrier_rows(shown: View) -> list[Row]:
    """The loss of every pair, and each metric below it."""
    rows: list[Row] = []
    for pairs in _blocks(shown.pairs):
        quantities = ["loss", *shown.metrics]
        for quantity in quantities:
            last = quantity == quantities[-1]
            panels = [
                Panel(
                    _lines(pair, quantity),
                    errors=_errors(pair) if quantity == "loss" else {},
                    title=_title(pair) if quantity == "loss" else "",
                    note=_note(pair) if quantity == "loss" else "",
                    below=ALONG if last else "",
                )
                for pair in pairs
            ]
            label = "loss (cross-entropy)" if quantity == "loss" else metric_name(quantity)
            rows.append(Row(label, panels, quantity in PERCENT, quantity in STEEP))
    return rows


def calibrated_rows(shown: View) -> list[Row]:
    """The losses with the best temperature of every point, those without it behind them, and that temperature."""
    rows: list[Row] = []
    for pairs in _blocks(shown.pairs):
        losses = [
            Panel(
                _lines(pair, "calibrated_loss"),
                faint=_lines(pair, "loss"),
                title=_title(pair),
                note=_note(pair, calibrated=True),
            )
            for pair in pairs
        ]
        temperatures = [Panel(_lines(pair, "temperature"), below=ALONG) for pair in pairs]
        rows += [Row("calibrated loss (thin: as it is)", losses), Row("temperature", temperatures)]
    return rows


def _blocks(pairs: Sequence[ShownPair]) -> list[Sequence[ShownPair]]:
    return [pairs[start : start + _COLUMNS] for start in range(0, len(pairs), _COLUMNS)]


def _lines(pair: ShownPair, quantity: str) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.method: (
            [point.t for point in line.points],
            [math.nan if value is None else value for value in line.values(quantity)],
        )
        for line in pair.lines
        if line.points
    }


def _errors(pair: ShownPair) -> dict[str, list[float | None]]:
    """Of the losses of the finished lines, by method."""
    return {line.method: line.errors for line in pair.lines if line.curve is not None}


def _title(pair: ShownPair) -> str:
    return f"{plain(_clipped(pair.a))} to {plain(_clipped(pair.b))}"


def _clipped(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 + 1 :]}"


def _note(pair: ShownPair, calibrated: bool = False) -> str:
    """The barriers of a pair, and which of its lines are unfinished."""
    if not any(line.points for line in pair.lines):
        return "not begun"
    barriers: list[str] = []
    for line in pair.lines:
        if line.curve is not None:
            barrier = line.curve.calibrated_barrier if calibrated else line.curve.barrier
            barriers.append(f"{line.style.short} {'not finite' if barrier is None else number(barrier)}")
    unfinished = [line.style.short for line in pair.lines if line.curve is None]
    return folded({"barrier": barriers, "unfinished": unfinished})


def folded(parts: Mapping[str, Sequence[str]]) -> str:
    """A panel's note on lines that it has room for: what there is of every part; an item isn't broken."""
    texts = [
        f"{what}: {', '.join(item.replace(' ', _NBSP) for item in items)}" for what, items in parts.items() if items
    ]
    return plain("\n".join(textwrap.wrap("; ".join(texts), 46, break_on_hyphens=False)))


def plain(text: str) -> str:
    """Text in which matplotlib finds no formulas."""
    return text.replace("$", r"\$")
