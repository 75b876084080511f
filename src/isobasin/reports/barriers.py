"""The barriers between checkpoints, from Python: measured and recorded as by the command, and given as curves."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isobasin.canonical import Source
from isobasin.checkpoints import temporary_folder
from isobasin.errors import IsobasinError, needing
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.lines.path import LossCurve
from isobasin.pictures import inline, new_axes
from isobasin.plain import Plain, finite
from isobasin.records.file import Measured
from isobasin.reports.view import ShownLine, ShownPair, view
from isobasin.tasks.data import Data
from isobasin.verbs.settings import Progress, silent


@dataclass(frozen=True)
class MeasuredLine(Plain):
    """The line between two models, the second one after a move.

    Attributes:
        a: What the model at t = 0 is called.
        b: What the model at t = 1 is called.
        method: How it was moved (`choices.Way`): "none", "gauss-newton", ….
        curve: The losses; one that is no number is infinite.
        error: Standard error of the barrier, of examples drawn anew; None with fewer than two.
        relative: Share of the barrier of method "none"; None where that is 0 or wasn't measured.
        color: In pictures.
    """

    a: str
    b: str
    method: str
    curve: LossCurve
    error: float | None
    relative: float | None
    color: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, without the points."""
        own = {name: getattr(self, name) for name in ("a", "b", "method")}
        figures = {"height": self.curve.height, "worst_t": self.curve.worst_t}
        return finite({**own, **figures, "error": self.error, "relative": self.relative})


@dataclass(frozen=True)
class Barriers(Plain):
    """What `barrier` measured.

    Attributes:
        lines: Of all pairs of models, B moved in every way asked for.
        path: The folder of records and report, if one was asked for.
        notes: What a reader has to know.
    """

    lines: tuple[MeasuredLine, ...]
    path: Path | None
    notes: tuple[str, ...] = ()

    def curve(self, method: str, a: str | None = None, b: str | None = None) -> LossCurve:
        """The losses of one line.

        Args:
            method: How B was moved.
            a: What the first model is called; None for the first line of the method.
            b: What the second one is called.

        Raises:
            IsobasinError: There is no such line.
        """
        for line in self.lines:
            if line.method == method and a in (None, line.a) and b in (None, line.b):
                return line.curve
        there = ", ".join(f"{line.method} from {line.a} to {line.b}" for line in self.lines)
        raise IsobasinError(f"no such line was measured: there is {there}")

    def plot(self, ax: Any = None) -> Any:
        """Draw all lines.

        Args:
            ax: Axes of matplotlib to draw on; None makes a figure, which a notebook shows.

        Returns:
            The axes.

        Raises:
            DependencyError: matplotlib is missing.
        """
        axes = new_axes() if ax is None else ax
        self._draw(self.lines, axes)
        return axes

    def _draw(self, lines: Sequence[MeasuredLine], axes: Any) -> None:
        pairs = {(line.a, line.b) for line in lines}
        for line in lines:
            label = line.method if len(pairs) == 1 else f"{line.a} to {line.b}, {line.method}"
            line.curve.plot(axes, label=label, color=line.color)
        if len(pairs) == 1:
            axes.set_title(" to ".join(pairs.pop()).replace("$", r"\$"), fontsize=10)
        axes.legend(frameon=False, fontsize=8)

    def _picture(self) -> str:
        pairs = list(dict.fromkeys((line.a, line.b) for line in self.lines))[:3]
        of = [[line for line in self.lines if (line.a, line.b) == pair] for pair in pairs]
        return inline([partial(self._draw, lines) for lines in of], "losses along the lines")


def barrier(
    models: Sequence[Source],
    data: Data,
    output: str | os.PathLike[str] | None = None,
    *,
    how: Measuring | None = None,
    aligned: Sequence[str] = (),
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Barriers:
    """Measure the loss barriers between checkpoints, naive and aligned, on data.

    The line is `θ(t) = (1 - t) A + t B`, and the barrier how far the loss rises above the straight line between those
    of its ends. The second model of a pair is moved in every way asked for, without changing what it computes.
    `isobasin.lines.barrier` takes modules and any loss instead.

    Args:
        models: At least two: folders, hub ids, or transformers models, with the same tensors.
        data: A hub id or path, the same with more said of it (`DataOptions`), or examples that are prepared.
        output: Folder for records, tables, figures and `report.html`; a call with the same arguments goes on where an
            interrupted one stopped. None writes nothing.
        how: Ways that B is moved, points, and how losses are computed.
        aligned: Folders that `align` or `refine` wrote of the two models, each of which is another line.
        force: Drop another run's records in the folder.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.

    Raises:
        IsobasinError: A subclass says what is wrong with the models, the data, or the output, in one line.
    """
    given: dict[str, Any] = {"aligned": aligned, "force": force, "allow_pickle": allow_pickle, "progress": progress}
    if output is None:
        with temporary_folder() as folder:
            return _barriers(measure(models, data, folder / "lines", how, **given), None)
    with needing("reports need pandas"):
        from isobasin.reports.write import write_report

    found = measure(models, data, output, how, **given)
    write_report(output)
    return _barriers(found, Path(output))


def _barriers(found: Measured, path: Path | None) -> Barriers:
    shown = view(found)
    lines = tuple(_line(pair, line) for pair in shown.pairs for line in pair.lines)
    return Barriers(lines, path, tuple(shown.notes))


def _line(pair: ShownPair, line: ShownLine) -> MeasuredLine:
    """A line whose points are all there."""
    assert line.curve is not None
    losses = [math.inf if point.loss is None else point.loss for point in line.points]
    height = math.inf if line.curve.barrier is None else line.curve.barrier
    found = line.curve
    at = tuple(point.t for point in line.points)
    curve = LossCurve(at, tuple(losses), height, found.worst_t, tuple(found.loss_errors))
    return MeasuredLine(pair.a, pair.b, line.method, curve, found.barrier_error, found.relative, line.style.color)
