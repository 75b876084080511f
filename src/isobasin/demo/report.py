"""What the demo prints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from isobasin.demo import place
from isobasin.demo.measure import ALIGNED, HEADS, NAIVE, Pair, Undone


class Steps(Protocol):
    """What a part of the demo tells how far it is."""

    def __call__(self) -> None:
        """One more step is done."""
        ...


class Reporter:
    """Progress on one console, results on another."""

    def __init__(self, results: Console, progress: Console) -> None:
        self.results = results
        self._progress = progress

    @contextmanager
    def steps(self, what: str, total: int) -> Generator[Steps]:
        """A bar while something of `total` steps is done; a line where there is no terminal for bars."""
        if not self._progress.is_terminal:
            self._progress.print(f"{what} …", markup=False, highlight=False)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        bar = Progress(SpinnerColumn(), *columns, console=self._progress, disable=not self._progress.is_terminal)
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def say(self, text: str = "") -> None:
        """A line of the results, as it is."""
        self.results.print(text, markup=False, highlight=False, soft_wrap=True)


def models_table(models: Sequence[dict[str, Any]]) -> Table:
    """The trained models."""
    table = Table(title="The models, on test images")
    table.add_column("model")
    table.add_column("loss", justify="right")
    table.add_column("accuracy", justify="right")
    for model in models:
        table.add_row(model["name"], f"{model['test_loss']:.3f}", f"{100 * model['test_accuracy']:.1f} %")
    return table


def barriers_table(pairs: Sequence[Pair]) -> Table:
    """The barriers of all pairs."""
    table = Table(title="Loss barriers, and % of naive")
    table.add_column("models")
    table.add_column(NAIVE, justify="right")
    for way in (HEADS, ALIGNED):
        table.add_column(way, justify="right")
        table.add_column("%", justify="right")
    for pair in pairs:
        row = [f"{pair.first} and {pair.second}", f"{pair.curves[NAIVE].height:.3f}"]
        for way in (HEADS, ALIGNED):
            percent = pair.percent(way)
            row += [f"{pair.curves[way].height:.3f}", "–" if percent is None else f"{percent:.1f}"]
        table.add_row(*row)
    return table


def undone_lines(undone: Undone) -> Iterator[str]:
    """How scrambling and undoing it went."""
    yield (
        f"{place.model_name(1)} scrambled by a random group element: heads permuted, biases shifted, every map of "
        f"condition number {undone.condition:g}."
    )
    yield f"  its outputs change by      {undone.function_difference:.1e} (relative)"
    before, after = undone.distance_before, undone.distance_after
    yield f"  distance of the weights    {before:.4g} scrambled, {after:.1e} after align"
    yield f"  heads in their own place   {undone.heads_restored} of {undone.heads}"


def next_commands(folder: Path) -> Iterator[str]:
    """What to try next: every line runs as it stands, on the demo's models."""
    run = _program()
    one, two = (_quoted(folder / place.model_name(number)) for number in (1, 2))
    scrambled, aligned = _quoted(folder / place.SCRAMBLED), _quoted(folder / "try-aligned")
    yield f"{run} align {one} {two} -o {aligned}"
    yield f"{run} verify {two} {aligned}"
    yield f"{run} interpolate {one} {aligned} -t 0.5 -o {_quoted(folder / 'try-middle')}"
    yield f"{run} equivalent {one} {scrambled}"
    yield f"{run} symmetry {one}"


def own_commands() -> Iterator[str]:
    """The same for one's own checkpoints: folders or hub ids."""
    run = _program()
    yield f"{run} align path/to/reference path/to/model -o aligned"
    yield f"{run} interpolate path/to/reference aligned -t 0.5 -o merged"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _program() -> str:
    """How this program can be started from here."""
    here = Path(sys.executable).with_name("isobasin")
    found = shutil.which("isobasin")
    if found is not None and (not here.exists() or Path(found).samefile(here)):
        return "isobasin"
    if not here.exists():
        return f"{shlex.quote(sys.executable)} -m isobasin"
    inside = here.is_relative_to(Path.cwd())
    return _quoted(Path(os.path.relpath(here)) if inside else here)
