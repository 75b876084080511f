"""Tables and figures of an experiment, from the records of its cells alone."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from isobasin.checkpoints.output import disk_errors, replace_text
from isobasin.experiments.cells import Cell
from isobasin.experiments.run import Experiment
from isobasin.reports import experiment_figures
from isobasin.reports.experiment_page import render
from isobasin.reports.experiment_tables import tables
from isobasin.reports.experiment_ways import ways
from isobasin.reports.figures import require_matplotlib
from isobasin.text import markdown

REPORT = "report"
"""The folder that tables and figures are written to."""

PAGE, TEXT = "report.html", "report.md"


def write_experiment_report(folder: str | os.PathLike[str]) -> list[Path]:
    """Write `report.html`, `report.md`, a CSV for each table, and figures as PNG and SVG into `report` of the folder.

    An unfinished experiment is shown as far as it came; models aren't needed.

    Args:
        folder: Of an experiment.

    Returns:
        The files that were written.

    Raises:
        ConfigurationError: No experiment was run in the folder.
        DependencyError: matplotlib or Jinja2 is missing.
        OutputError: The folder can't be written.
    """
    experiment = Experiment.open(Path(folder))
    target = experiment.folder / REPORT
    require_matplotlib()

    @cache
    def results(cell: Cell) -> dict[str, Any] | None:
        record = experiment.store.record(cell)
        return None if record is None else record["result"]

    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    figures: list[Path] = []
    for plan in experiment.plans:
        figures += experiment_figures.curves(plan, results, target)
        figures += experiment_figures.permutations(plan, results, target)
    figures += experiment_figures.layers(experiment.plans, results, target)
    figures += ways(experiment.plans, results, target)
    found = tables(experiment.plans, results)
    for table in found:
        replace_text(target / f"{table.name}.csv", table.csv())
    title, progress = experiment.settings.title, _progress(experiment)
    images = [f"![{path.stem}]({path.name})" for path in figures if path.suffix == ".png"]
    page = f"[{PAGE}]({PAGE}) shows the same, and every line to look at."
    parts = [f"# {markdown(title)}", *progress, page, *(table.markdown() for table in found), *images]
    replace_text(target / TEXT, "\n\n".join(parts) + "\n")
    # The page has all curves already, to look at one pair at a time.
    still = {_caption(path): path for path in figures if path.suffix == ".svg" and not path.name.startswith("curves-")}
    replace_text(target / PAGE, render(title, progress, experiment.plans, results, found, still))
    return [target / PAGE, target / TEXT, *(target / f"{table.name}.csv" for table in found), *figures]


def _caption(figure: Path) -> str:
    """What a figure shows, from its file's name."""
    kind, _, rest = figure.stem.partition("-")
    shown = {"permutations": "All head permutations", "reinitialise": "One attention layer drawn anew"}
    return ": ".join(filter(None, (shown.get(kind, "All ways to align"), rest.replace("-", " "))))


def _progress(experiment: Experiment) -> list[str]:
    """How far the experiment is."""
    states = experiment.state()
    total = sum(counts.total() for counts in states.values())
    left = sum(counts["to do"] + counts["failed"] for counts in states.values())
    progress = f"All {total} cells are done." if not left else f"{left} of {total} cells are still to do."
    smoke = "A smoke run: tiny models on made-up data. These figures say only that everything runs."
    return [progress, *([smoke] if experiment.smoke else [])]
