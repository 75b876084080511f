"""An experiment's figures in the paper's form: lines by scope, all head permutations, layers drawn anew."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobasin.experiments.plan import SettingPlan
from isobasin.records.curves import chosen_rank
from isobasin.reports.experiment_tables import Result, Results, measured
from isobasin.reports.figures import ALONG, FORMATS, Panel, Row, draw, folded, plain, saved_figure
from isobasin.reports.frames import spread
from isobasin.reports.style import Style, brief, styles
from isobasin.text import printable

_COLUMNS = 4
_CHOSEN, _OTHER = "chosen", "other permutations"
_LOOKS = {
    _OTHER: Style("another head permutation", "other", "#8A8F98", "#A8ADB4", (), ""),
    "none": styles(["none"])["none"],
    _CHOSEN: Style("the chosen one", "chosen", "#0072B2", "#56B4E9", (), "o"),
}


def curves(plan: SettingPlan, results: Results, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Losses along the lines of one setting: a row for every scope, a column for every pair of seeds.

    Args:
        plan: The setting.
        results: Of its cells.
        folder: Where the figure goes.
        names: Of its files; by default the setting's title is in them.
    """
    rows: list[Row] = []
    methods: list[str] = []
    for group in plan.groups:
        panels: list[Panel] = []
        for (a, b), result in measured(group, results).items():
            methods += [method for method in result["lines"] if method not in methods]
            lines = {method: _line(result["t"], line["losses"]) for method, line in result["lines"].items()}
            errors = {method: found for method, line in result["lines"].items() if (found := line.get("loss_errors"))}
            panels.append(Panel(lines, errors, title=f"seeds {a} and {b}", note=_note(result)))
        if panels:
            rows += _wrapped(f"{printable(group.title)}\nloss", panels)
    if not rows:
        return []
    rows[-1] = Row(rows[-1].label, [replace(panel, below=ALONG) for panel in rows[-1].panels])
    paths = [folder / name for name in names] or _paths(folder, "curves", plan.setting.title)
    draw(rows, styles(methods), printable(plan.setting.title), paths)
    return paths


def permutations(plan: SettingPlan, results: Results, folder: Path) -> list[Path]:
    """Losses along the lines after every head permutation of the first layer, each followed by stage 2."""
    rows: list[Row] = []
    for group in plan.groups:
        done = ((seeds, results(cell)) for seeds, cell in group.ablations.get("stage-1", {}).items())
        panels = [_permuted(seeds, result) for seeds, result in done if result is not None]
        if panels:
            rows += _wrapped(f"{printable(group.title)}\nloss", [replace(panel, below=ALONG) for panel in panels])
    if not rows:
        return []
    paths = _paths(folder, "permutations", plan.setting.title)
    title = f"{printable(plan.setting.title)}: all head permutations (thin: those not chosen)"
    # Those that weren't chosen look all alike.
    others = {name: _LOOKS[_OTHER] for row in rows for panel in row.panels for name in panel.faint or {}}
    draw(rows, _LOOKS | others, title, paths)
    return paths


def _wrapped(label: str, panels: Sequence[Panel]) -> list[Row]:
    """Panels in rows that a page can show; six pairs in one would be unreadable."""
    return [Row(label, panels[start : start + _COLUMNS]) for start in range(0, len(panels), _COLUMNS)]


def _permuted(seeds: tuple[int, int], result: Result) -> Panel:
    naive = result["naive"]
    lines = {"none": _line(naive["t"], naive["losses"])}
    faint: dict[str, Any] = {}
    for index, row in enumerate(result["permutations"]):
        if row["chosen"]:
            lines[_CHOSEN] = _line(row["t"], row["losses"])
        else:
            faint[f"{_OTHER} {index}"] = _line(row["t"], row["losses"])
    l_hat = "" if result["l_hat"] is None else rf", $\hat L$ = {brief(result['l_hat'])}"
    note = f"rank {chosen_rank(result['permutations'])} of {result['of']}{l_hat}"
    return Panel(lines, faint=faint, title=f"seeds {seeds[0]} and {seeds[1]}", note=note)


def layers(plans: Sequence[SettingPlan], results: Results, folder: Path) -> list[Path]:
    """The loss of every pretrained model against the layer whose attention is drawn anew."""
    done = [(plan, results(plan.reinitialise)) for plan in plans if plan.reinitialise is not None]
    found = [(plan.setting.title, result) for plan, result in done if result is not None]
    if not found:
        return []
    columns = min(len(found), _COLUMNS)
    rows = math.ceil(len(found) / columns)
    paths = _paths(folder, "reinitialise", "")
    with saved_figure((max(3.7 * columns, 5), 2.9 * rows + 1), paths) as figure:
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for (title, result), axis in zip(found, grid, strict=False):
            _draw_layers(axis, title, result)
        for axis in grid[len(found) :]:
            axis.set_visible(False)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("One attention layer drawn anew, without training", fontsize=12)
    return paths


def _draw_layers(axis: Any, title: str, result: Result) -> None:
    drawn = [{"layer": layer["layer"], "loss": draw["loss"]} for layer in result["layers"] for draw in layer["draws"]]
    found = spread(drawn, ("layer",), ("loss",))
    numbers, means, errors = found["layer"], found["loss"], found["loss sd"].fillna(0)
    axis.errorbar(numbers, means, yerr=errors, color="#0072B2", marker="o", capsize=3, label="drawn anew")
    axis.axhline(result["pretrained"]["loss"], color="#666666", linestyle="--", label="pretrained")
    axis.set_title(plain(printable(title)), fontsize=10.5)
    axis.set_xlabel("layer", fontsize=9)
    axis.set_xticks(numbers)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylabel("loss (cross-entropy)")
    axis.set_ylim(bottom=0)


def _line(t: Sequence[float], losses: Sequence[float | None]) -> tuple[list[float], list[float]]:
    return list(t), [math.nan if loss is None else loss for loss in losses]


def _note(result: Result) -> str:
    found = result["lines"]
    barriers = [
        f"{style.short} {'not finite' if found[method]['barrier'] is None else brief(found[method]['barrier'])}"
        for method, style in styles(list(found)).items()
    ]
    return folded({"barrier": barriers})


def _paths(folder: Path, kind: str, title: str) -> list[Path]:
    name = "-".join(filter(None, (kind, re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"))))
    return [folder / f"{name}.{suffix}" for suffix in FORMATS]
