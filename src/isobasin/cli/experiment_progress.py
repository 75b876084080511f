"""How a running experiment is shown on stderr: bars on a terminal, a line for every cell and what runs elsewhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID

from isobasin.cli.console import QUIET, bars_on, now_and_then
from isobasin.signals import stop_if_asked

if TYPE_CHECKING:
    from isobasin.execution.tasks import Failure
    from isobasin.experiments.cells import Cell


class Forecast:
    """How long the rest takes: for each kind of cell the mean of those done, divided among those that run at once."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._left = Counter(cell.kind for cell in cells)
        self._took: dict[str, list[float]] = defaultdict(list)

    def done(self, kind: str, seconds: float) -> None:
        """A cell took so long."""
        self._left[kind] -= 1
        self._took[kind].append(seconds)

    def dropped(self, kind: str) -> None:
        """A cell won't be done."""
        self._left[kind] -= 1

    def seconds(self, at_once: int) -> float | None:
        """Of all that is left; None before anything is done."""
        everything = [seconds for took in self._took.values() for seconds in took]
        if not everything:
            return None
        overall = sum(everything) / len(everything)
        means = {kind: sum(took) / len(took) for kind, took in self._took.items()}
        return sum(count * means.get(kind, overall) for kind, count in self._left.items()) / max(1, at_once)


class _Watcher:
    """Draws what it is told."""

    def __init__(self, cells: Sequence[Cell], screen: Console, bars: Progress) -> None:
        self._screen, self._bars = screen, bars
        self._forecast = Forecast(cells)
        self._total, self._ended, self._at_once = len(cells), 0, 1
        self._running: dict[str, TaskID] = {}
        self._doing: dict[str, str] = {}
        self._whole = bars.add_task("cells", total=len(cells) or None, count="")

    def started(self, cell: Cell) -> None:
        stop_if_asked()
        self._running[cell.key] = self._bars.add_task(f"  {cell.label}", total=None, count="")
        self._doing[cell.key] = cell.label
        # Just after one has ended the next one isn't running yet: the most there were tell how many there can be.
        self._at_once = max(self._at_once, len(self._running))
        self._tell()

    def progress(self, cell: Cell, what: str, done: int, total: int) -> None:
        stop_if_asked()
        if cell.key in self._running:
            note = f"{what} {done}/{total}"
            self._doing[cell.key] = f"{cell.label} ({note})"
            self._bars.update(self._running[cell.key], completed=done, total=total, count=note)

    def done(self, cell: Cell, seconds: float) -> None:
        self._forecast.done(cell.kind, seconds)
        self._end(cell)
        self._line(f"done in {seconds:.1f} s: {cell.label}")

    def failed(self, cell: Cell, failure: Failure) -> None:
        self._forecast.dropped(cell.kind)
        self._end(cell)
        if not failure.because:
            self._line(f"failed: {cell.label}")

    def _end(self, cell: Cell) -> None:
        self._ended += 1
        if cell.key in self._running:
            self._bars.remove_task(self._running.pop(cell.key))
            del self._doing[cell.key]
        self._tell()

    def _tell(self) -> None:
        note = f"{self._ended}/{self._total}, {len(self._running)} running{self._left()}"
        self._bars.update(self._whole, completed=self._ended, count=note)

    def _left(self) -> str:
        seconds = self._forecast.seconds(min(self._at_once, self._total - self._ended))
        return "" if seconds is None or self._ended == self._total else f", about {_duration(seconds)} left"

    def running(self, seconds: float) -> None:
        """Say what runs, and for how long the whole has."""
        if running := ", ".join(self._doing.copy().values()):
            self._line(f"running ({_duration(seconds)}): {running}")

    def _line(self, text: str) -> None:
        if not self._screen.is_terminal and not QUIET.get():
            self._screen.print(f"[{self._ended}/{self._total}{self._left()}] {text}", soft_wrap=True)


@contextmanager
def watching(cells: Sequence[Cell], screen: Console) -> Generator[_Watcher]:
    """Show the progress of a run while the block lasts.

    Args:
        cells: What is left to do.
        screen: Where.
    """
    with bars_on(screen, BarColumn(bar_width=24)) as bars:
        watcher = _Watcher(cells, screen, bars)
        with nullcontext() if screen.is_terminal else now_and_then(watcher.running):
            yield watcher


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
