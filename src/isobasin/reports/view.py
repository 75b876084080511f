"""A measurement as it is shown: pairs, their lines, and how far an interrupted one came."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from isobasin.records.curves import NAIVE, finished_curves
from isobasin.records.file import Measured
from isobasin.records.schema import AlignmentRecord, CurveRecord, PointRecord, RunRecord
from isobasin.reports.style import Style, labels, styles


@dataclass(frozen=True)
class ShownLine:
    """One line between two models.

    Attributes:
        method: How B was moved.
        style: How that is drawn.
        points: The measured ones, by rising t.
        curve: What they say; None until all of them are there.
        alignment: What moved B, if anything did.
    """

    method: str
    style: Style
    points: tuple[PointRecord, ...]
    curve: CurveRecord | None
    alignment: AlignmentRecord | None

    def values(self, quantity: str) -> list[float | None]:
        """A quantity at the measured points; None where it isn't a number."""
        if quantity in ("loss", "calibrated_loss", "temperature"):
            return [getattr(point, quantity) for point in self.points]
        return [point.metrics.get(quantity) for point in self.points]

    @property
    def errors(self) -> list[float | None]:
        """Standard errors of the losses at the measured points; all None until the line is finished."""
        return [None] * len(self.points) if self.curve is None else list(self.curve.loss_errors)

    @property
    def distance(self) -> tuple[float, float] | None:
        """Of all attention weights, before and after aligning."""
        if self.alignment is None:
            return None
        before = [layer.distance_before for layer in self.alignment.layers]
        after = [layer.distance_after for layer in self.alignment.layers]
        return math.hypot(*(_known(value) for value in before)), math.hypot(*(_known(value) for value in after))


@dataclass(frozen=True)
class ShownPair:
    """Two models and the lines between them.

    Attributes:
        a: What the model at t = 0 is called.
        b: What the model at t = 1 is called.
        lines: One for every method, in the order of drawing.
    """

    a: str
    b: str
    lines: tuple[ShownLine, ...]


@dataclass(frozen=True)
class View:
    """All that is shown.

    Attributes:
        run: What was measured.
        styles: How every method looks.
        metrics: What was measured beside the loss.
        pairs: Every pair, whether it was begun or not.
        notes: What a reader has to know.
    """

    run: RunRecord
    styles: dict[str, Style]
    metrics: tuple[str, ...]
    pairs: tuple[ShownPair, ...]
    notes: tuple[str, ...]

    @property
    def calibrated(self) -> bool:
        """Whether there are losses with a calibrated temperature."""
        points = (point for pair in self.pairs for line in pair.lines for point in line.points)
        return any(point.calibrated_loss is not None for point in points)

    @property
    def progress(self) -> tuple[int, int]:
        """How many points were measured, and how many there are to measure."""
        lines = [line for pair in self.pairs for line in pair.lines]
        return sum(len(line.points) for line in lines), len(lines) * len(self.run.t)


def alone(run: RunRecord) -> bool:
    """Whether models are measured as they are given, and not after any move."""
    return list(run.methods) == [NAIVE]


def moved(run: RunRecord) -> bool:
    """Whether models were moved before they were measured, and not by the run itself: none of its lines is naive."""
    return alone(run) and any(model.moved for model in run.models)


def given(run: RunRecord) -> dict[str, str]:
    """What moved the models of lines that were given as they had been moved before, by method."""
    return {one.method: one.how for one in run.aligned}


def view(measured: Measured) -> View:
    """What is to be shown of a measurement."""
    run = measured.run
    names, looks = labels([model.name for model in run.models]), styles(run.methods, moved(run), given(run))
    curves = finished_curves(measured)
    metrics = dict.fromkeys(
        metric for points in measured.points.values() for point in points for metric in point.metrics
    )
    pairs: list[ShownPair] = []
    for a, b in sorted({*itertools.combinations(range(len(names)), 2), *(pair for pair, _ in measured.points)}):
        lines: list[ShownLine] = []
        for method, style in looks.items():
            key = (a, b), method
            points = tuple(measured.points.get(key, ()))
            lines.append(ShownLine(method, style, points, curves.get(key), measured.alignments.get(key)))
        pairs.append(ShownPair(names[a], names[b], tuple(lines)))
    return View(run, looks, tuple(metrics), tuple(pairs), measured.notes)


def best(pair: ShownPair) -> ShownLine | None:
    """The finished line of the strongest method that moved B: the last in the order of drawing."""
    moved = [line for line in pair.lines if line.method != NAIVE and line.curve is not None]
    return moved[-1] if moved else None


def naive(pair: ShownPair) -> ShownLine | None:
    """The finished line of B as it is."""
    return next((line for line in pair.lines if line.method == NAIVE and line.curve is not None), None)


def _known(value: float | None) -> float:
    return math.nan if value is None else value
