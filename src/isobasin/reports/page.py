"""`report.html`: one page that needs nothing else, neither files nor a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isobasin.checkpoints.output import replace_text
from isobasin.records.curves import NAIVE
from isobasin.records.schema import LayerRecord, StreamRecord, UnitsRecord
from isobasin.reports.html import rendered, rounded
from isobasin.reports.style import PERCENT, STEEP, Style, brief, labels, metric_name, number, styles
from isobasin.reports.view import ShownLine, ShownPair, View, alone, best, moved, naive


def write_page(shown: View, path: Path) -> None:
    """Write the page of a measurement.

    Raises:
        DependencyError: Jinja2 is missing.
        OutputError: The file can't be written.
    """
    replace_text(path, render(shown))


def render(shown: View) -> str:
    """The page as text. Everything in it that came from outside is escaped.

    Raises:
        DependencyError: Jinja2 is missing.
    """
    return rendered(
        "page.html",
        ("heads.js", "layers.js", "page.js"),
        styles=shown.styles,
        data=payload(shown),
        title=title(shown),
        headline=headline(shown),
        shown=shown,
        streams=streams(shown),
        settings=_asked(shown.run.settings),
        naive=NAIVE,
        whole=styles([NAIVE], moved(shown.run))[NAIVE].short,
        done=shown.progress[0],
        total=shown.progress[1],
    )


def title(shown: View) -> str:
    """The models of the only pair, or how many there are, and the data."""
    data = labels([shown.run.data.source])[0]
    if len(shown.pairs) == 1:
        return f"{shown.pairs[0].a} to {shown.pairs[0].b} on {data}"
    return f"{len(shown.run.models)} models on {data}"


def headline(shown: View) -> str:
    """What the measurement found, in a sentence or two."""
    lines = [(before, best(pair)) for pair in shown.pairs if (before := naive(pair))]
    found = [(before, after) for before, after in lines if after]
    starts = [before.curve.barrier for before, _ in (lines if alone(shown.run) else found) if before.curve]
    ends = [after.curve.barrier for _, after in found if after.curve]
    shares = [after.curve.relative for _, after in found if after.curve]
    if not starts or None in starts:
        return "The loss along the straight line between two models, before and after aligning them."
    where = "between the two models" if len(shown.pairs) == 1 else "between two of these models"
    first = f"On the straight line {where} the loss rises by {_range(starts)}."
    if not found or None in ends or None in shares:
        return first
    return f"{first} After alignment ({found[0][1].style.name}) by {_range(ends)}: {_range(shares, True)} of that."


def _range(values: Sequence[float | None], share: bool = False) -> str:
    """One number, or the least and the greatest."""
    known = [value for value in values if value is not None]
    low, high = (brief(100 * value if share else value) for value in (min(known), max(known)))
    return (low if low == high else f"{low} to {high}") + ("\u00a0%" if share else "")


def streams(shown: View) -> list[tuple[ShownPair, list[tuple[int, Style, StreamRecord]]]]:
    """What became of the residual stream: of every pair of which a line moved it, by method and its place."""
    found = [
        (
            pair,
            [
                (index, line.style, line.alignment.stream)
                for index, line in enumerate(pair.lines)
                if line.alignment is not None and line.alignment.stream is not None
            ],
        )
        for pair in shown.pairs
    ]
    return [(pair, rows) for pair, rows in found if rows]


def payload(shown: View) -> dict[str, Any]:
    """What the page's scripts draw. Heads' costs, which methods share, are listed once."""
    costs: dict[tuple[tuple[float | None, ...], ...], int] = {}
    pairs = [
        {
            "a": pair.a,
            "b": pair.b,
            "lines": [_line(line, shown.metrics) for line in pair.lines],
            "layers": [
                [_layer(layer, costs) for layer in line.alignment.layers] if line.alignment else None
                for line in pair.lines
            ],
            "units": [
                [_units(block) for block in line.alignment.feedforward] if line.alignment else None
                for line in pair.lines
            ],
        }
        for pair in shown.pairs
    ]
    return {
        "t": shown.run.t,
        "methods": [{"name": style.name, "dash": style.dash} for style in shown.styles.values()],
        "quantities": quantities(shown.metrics, shown.calibrated),
        "pairs": pairs,
        "costs": [[[rounded(value) for value in row] for row in table] for table in costs],
    }


def quantities(metrics: Sequence[str], calibrated: bool) -> list[dict[str, Any]]:
    """What the curves can show: a chord joins the ends where the rise above it is the barrier."""
    loss = {"id": "loss", "name": "loss", "chord": True, "percent": False, "log": False}
    found = [loss]
    for metric in metrics:
        scales = {"percent": metric in PERCENT, "log": metric in STEEP}
        found.append({"id": metric, "name": metric_name(metric), "chord": False, **scales})
    if calibrated:
        found.append({**loss, "id": "calibrated_loss", "name": "calibrated loss"})
        found.append({**loss, "id": "temperature", "name": "temperature", "chord": False})
    return found


def _line(line: ShownLine, metrics: Sequence[str]) -> dict[str, Any]:
    """The measured points of a line by quantity; null is a value that isn't finite."""
    quantities = ("loss", *metrics, "calibrated_loss", "temperature")
    curve = line.curve
    return {
        "t": [point.t for point in line.points],
        "values": {name: [rounded(value) for value in line.values(name)] for name in quantities},
        "errors": [rounded(error) for error in line.errors],
        "barrier": None if curve is None else number(curve.barrier),
        "worst": None if curve is None else curve.worst_t,
        "calibratedBarrier": None if curve is None else number(curve.calibrated_barrier),
        "calibratedWorst": None if curve is None else curve.calibrated_worst_t,
    }


def _layer(layer: LayerRecord, costs: dict[tuple[tuple[float | None, ...], ...], int]) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "before": rounded(layer.distance_before),
        "after": rounded(layer.distance_after),
        "condition": rounded(layer.condition),
        "iterations": layer.iterations,
        "status": layer.status,
        "heads": layer.head_permutation,
        "costs": costs.setdefault(layer.head_costs, len(costs)),
    }


def _units(block: UnitsRecord) -> dict[str, Any]:
    # Places of units within experts are told for each of these.
    of = block.units * (block.experts or 1)
    return {
        "layer": block.block,
        "before": rounded(block.distance_before),
        "after": rounded(block.distance_after),
        "moved": rounded(block.moved_units / of),
        "status": block.status,
    }


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something; what wasn't asked for isn't among them."""
    return {name: value for name, value in settings.items() if value not in (None, {}, [], "")}
