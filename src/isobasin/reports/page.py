"""`report.html`: one page that needs nothing else, neither files nor a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isobasin.checkpoints.output import replace_text
from isobasin.errors import needing
from isobasin.records.curves import NAIVE
from isobasin.records.schema import LayerRecord, StreamRecord, UnitsRecord
from isobasin.reports.style import PERCENT, STEEP, Style, alike, brief, labels, metric_name, number, percent, styles
from isobasin.reports.view import ShownLine, ShownPair, View, alone, best, moved, naive
from isobasin.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup

_ASSETS = files("isobasin.reports") / "assets"
_SCRIPTS = ("svg.js", "curves.js", "heads.js", "layers.js", "page.js")

# Digits of what is only drawn.
_DIGITS = 5


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
    with needing("the report page needs Jinja2"):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters: dict[str, Any] = {
        "number": number,
        "percent": percent,
        "alike": alike,
        "entry": _entry,
        "path": _breakable,
    }
    environment.filters.update(filters)
    return environment.from_string(_asset("page.html")).render(
        css=_asset("page.css"),
        scripts=[_asset(name) for name in _SCRIPTS],
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
        "quantities": _quantities(shown),
        "pairs": pairs,
        "costs": [[[_rounded(value) for value in row] for row in table] for table in costs],
    }


def _quantities(shown: View) -> list[dict[str, Any]]:
    """What the curves can show: a chord joins the ends where the rise above it is the barrier."""
    loss = {"id": "loss", "name": "loss", "chord": True, "percent": False, "log": False}
    found = [loss]
    for metric in shown.metrics:
        scales = {"percent": metric in PERCENT, "log": metric in STEEP}
        found.append({"id": metric, "name": metric_name(metric), "chord": False, **scales})
    if shown.calibrated:
        found.append({**loss, "id": "calibrated_loss", "name": "calibrated loss"})
        found.append({**loss, "id": "temperature", "name": "temperature", "chord": False})
    return found


def _line(line: ShownLine, metrics: Sequence[str]) -> dict[str, Any]:
    """The measured points of a line by quantity; null is a value that isn't finite."""
    quantities = ("loss", *metrics, "calibrated_loss", "temperature")
    curve = line.curve
    return {
        "t": [point.t for point in line.points],
        "values": {name: [_rounded(value) for value in line.values(name)] for name in quantities},
        "errors": [_rounded(error) for error in line.errors],
        "barrier": None if curve is None else number(curve.barrier),
        "worst": None if curve is None else curve.worst_t,
        "calibratedBarrier": None if curve is None else number(curve.calibrated_barrier),
        "calibratedWorst": None if curve is None else curve.calibrated_worst_t,
    }


def _layer(layer: LayerRecord, costs: dict[tuple[tuple[float | None, ...], ...], int]) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "before": _rounded(layer.distance_before),
        "after": _rounded(layer.distance_after),
        "condition": _rounded(layer.condition),
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
        "before": _rounded(block.distance_before),
        "after": _rounded(block.distance_after),
        "moved": _rounded(block.moved_units / of),
        "status": block.status,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _shown(value: Any) -> Any:
    """What takes the place of double braces; what comes from here (styles, scripts, data) is marked as HTML already."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something; what wasn't asked for isn't among them."""
    return {name: value for name, value in settings.items() if value not in (None, {}, [], "")}


def _breakable(path: str) -> Markup:
    """A path that is broken after its slashes, where it doesn't fit."""
    from markupsafe import Markup, escape

    return Markup("/<wbr>").join(escape(part) for part in printable(path).split("/"))


def _entry(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, list):
        return ", ".join(map(_entry, cast(list[Any], value)))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace("null", "none")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
