"""The figure of an experiment's pairs aligned in every way: where there is a low line and where there isn't."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobasin.experiments.plan import SettingPlan
from isobasin.reports.experiment_tables import Results
from isobasin.reports.figures import FORMATS, log_scale, plain, saved_figure
from isobasin.reports.style import styles
from isobasin.text import printable

# One way of each kind: as they are, published, matched without and with data, learned.
_DRAWN = ("none", "paper", "permutations", "attention", "model", "model-data", "refined")
_LOWEST = 1e-3
_LABEL = 16
# Of the space between two settings, what the markers of one take.
_WIDTH = 0.6

Found = dict[str, list[dict[str, Any]]]
"""What the pairs of every setting have, by way."""


def ways(plans: Sequence[SettingPlan], results: Results, folder: Path) -> list[Path]:
    """Barriers after one way to align of each kind, by setting: every pair, and their mean.

    Args:
        plans: Of the settings, in the order of the figure.
        results: Of their cells.
        folder: Where the figure goes.
    """
    found = {plan.setting.title: pairs for plan in plans if (pairs := _pairs(plan, results))}
    if not found:
        return []
    paths = [folder / f"ways.{suffix}" for suffix in FORMATS]
    with saved_figure((max(1.3 * len(found) + 1.5, 7), 5), paths) as figure:
        axis = figure.subplots()
        for index, way in enumerate(_DRAWN):
            _draw(axis, way, found, _WIDTH * (index / (len(_DRAWN) - 1) - 0.5))
        log_scale(axis)
        axis.set_ylabel(f"barrier (nats; {_LOWEST} and less as {_LOWEST})")
        names = [textwrap.fill(plain(printable(title)), _LABEL) for title in found]
        axis.set_xticks(range(len(found)), names, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(-0.5, len(found) - 0.5)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        figure.suptitle("Barriers by what is aligned and how; small: single pairs", fontsize=12)
    return paths


def _pairs(plan: SettingPlan, results: Results) -> list[dict[str, Any]]:
    """What every pair that is done has, by way."""
    cells = [cell for group in plan.groups for cell in group.ablations.get("alignments", {}).values()]
    return [result["ways"] for result in map(results, cells) if result is not None]


def _draw(axis: Any, way: str, found: Found, aside: float) -> None:
    """One way's barriers, beside those of others; where there is none, they stand at the lower end of the scale."""
    style = styles([way])[way]
    look = {"color": style.color, "marker": style.marker, "linestyle": "none", "markeredgewidth": 0}
    means: dict[float, float] = {}
    for at, pairs in enumerate(found.values()):
        known = [row["barrier"] for pair in pairs if (row := pair.get(way)) and row["barrier"] is not None]
        if known:
            place = at + aside
            axis.plot([place] * len(known), [max(x, _LOWEST) for x in known], markersize=4, alpha=0.45, **look)
            means[place] = max(statistics.mean(known), _LOWEST)
    if means:
        axis.plot(list(means), list(means.values()), markersize=8, label=style.name, **look)
