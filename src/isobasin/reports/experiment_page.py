"""`report.html` of an experiment: its tables, every line to look at, and its figures, in one file."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isobasin.experiments.plan import SettingPlan
from isobasin.reports.experiment_tables import Results, done, measured
from isobasin.reports.frames import Table
from isobasin.reports.html import rendered, rounded
from isobasin.reports.page import quantities
from isobasin.reports.style import number, styles

Lines = dict[str, dict[str, Any]]
"""Lines of a pair by method or way: their losses, and what else was measured."""


def render(
    title: str,
    progress: Sequence[str],
    plans: Sequence[SettingPlan],
    results: Results,
    tables: Sequence[Table],
    figures: Mapping[str, Path],
) -> str:
    """The page as text. Everything in it that came from outside is escaped.

    Args:
        title: Of the experiment.
        progress: How far it came, in sentences.
        plans: Of its settings.
        results: Of their cells.
        tables: All of them.
        figures: SVG files, by what they show.

    Raises:
        DependencyError: Jinja2 is missing.
    """
    pairs = list(_pairs(plans, results))
    looks = styles(list(dict.fromkeys(method for _, _, lines in pairs for method in lines)))
    metrics = list(dict.fromkeys(name for _, _, lines in pairs for line in lines.values() for name in line["metrics"]))
    shown = [
        {"a": seeds[0], "b": seeds[1], "lines": [_line(lines.get(method), metrics) for method in looks]}
        for _, seeds, lines in pairs
    ]
    data = {
        "t": next((line["t"] for _, _, lines in pairs for line in lines.values()), []),
        "methods": [{"name": style.name, "dash": style.dash} for style in looks.values()],
        "quantities": quantities(metrics, calibrated=False),
        "pairs": shown,
    }
    places = [(place, f"{a} and {b}") for place, (a, b), _ in pairs]
    return rendered(
        "experiment.html",
        ("page.js",),
        title=title,
        progress=progress,
        plans=plans,
        styles=looks,
        data=data,
        places=[(name, [seeds for _, seeds in of]) for name, of in itertools.groupby(places, key=lambda x: x[0])],
        tables=tables,
        figures={name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()},
    )


def _pairs(plans: Sequence[SettingPlan], results: Results) -> Iterator[tuple[str, tuple[str, str], Lines]]:
    """Every pair that is done: where it belongs, its seeds, and its lines."""
    for plan in plans:
        for group in plan.groups:
            ways = done(group, "alignments", results)
            for (a, b), result in measured(group, results).items():
                lines = {name: {"t": result["t"], **line} for name, line in result["lines"].items()}
                more = ways.get((a, b), {"ways": {}})["ways"]
                found = {name: {"metrics": {}, **way} for name, way in more.items() if "losses" in way}
                yield f"{plan.setting.title}, {group.title}", (f"seed {a}", f"seed {b}"), found | lines


def _line(line: dict[str, Any] | None, metrics: Sequence[str]) -> dict[str, Any]:
    """One line as the page's scripts draw it; one that wasn't measured has no points."""
    if line is None:
        return {"t": [], "values": {}, "errors": [], "barrier": None, "worst": None}
    count = len(line["t"])
    known = {"loss": line["losses"], **{name: line["metrics"][name] for name in metrics if name in line["metrics"]}}
    return {
        "t": line["t"],
        "values": {name: [rounded(value) for value in values] for name, values in known.items()},
        "errors": [rounded(error) for error in line.get("loss_errors") or [None] * count],
        "barrier": number(line["barrier"]),
        "worst": line.get("worst_t"),
    }
