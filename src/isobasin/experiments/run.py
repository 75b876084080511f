"""Running an experiment: what is left to do, doing it, and what became of it."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from isobasin.checkpoints.output import check_output, replace_text, sole_writer
from isobasin.errors import EXPERIMENT_EXTRA, ConfigurationError, OutputError, about, needing
from isobasin.execution.tasks import Engine, Failure, Progress, Task
from isobasin.experiments.cells import RECORD, SCHEMA_VERSION, TRAINED, Cell, Store
from isobasin.experiments.models import check_model
from isobasin.experiments.plan import SettingPlan, all_cells, pending, plans
from isobasin.experiments.settings import ExperimentSettings, near
from isobasin.experiments.smoke import shrunk
from isobasin.experiments.work import WORK, Job, RunOptions
from isobasin.plain import as_json

EXPERIMENT, FAILURES = "experiment.json", "failures"
"""In the folder of an experiment: its settings as they were run, and what unexpected errors said."""


class Watcher(Protocol):
    """Who is told how a run goes."""

    def started(self, cell: Cell) -> None:
        """A cell begins."""

    def progress(self, cell: Cell, what: str, done: int, total: int) -> None:
        """A step of a running cell is done."""

    def done(self, cell: Cell, seconds: float) -> None:
        """A cell is done."""

    def failed(self, cell: Cell, failure: Failure) -> None:
        """A cell failed, or one that it needs."""


class Experiment:
    """An experiment and its folder.

    Attributes:
        settings: As they are run.
        smoke: Whether they were shrunk.
        folder: Where everything is.
        store: Its cells.
        plans: The cells of every setting.
    """

    def __init__(self, settings: ExperimentSettings, folder: Path, *, smoke: bool = False) -> None:
        self.settings, self.folder, self.smoke = settings, folder, smoke
        self.store = Store(folder)
        self.plans = plans(settings)

    @classmethod
    def begin(
        cls, settings: ExperimentSettings, folder: Path, *, smoke: bool = False, only: Sequence[str] = ()
    ) -> Experiment:
        """Begin an experiment, or go on with it: cells that an earlier run did, by any configuration, stay.

        Args:
            settings: What to run.
            folder: Where; it may be an earlier run's.
            smoke: Shrink the settings before.
            only: Names of settings, see `chosen`; checked before anything is written.

        Raises:
            ConfigurationError: No setting has such a name.
            OutputError: The folder is something else's, another process runs it, or it can't be written.
        """
        check_output(folder, force=True)
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / EXPERIMENT).is_file():
                raise OutputError(f"{folder}: exists and isn't an experiment's: name another folder")
            if cls.open(folder).smoke != smoke:
                which = "a full" if smoke else "a smoke"
                raise OutputError(f"{folder}: holds {which} run: name another folder")
        found = cls(shrunk(settings) if smoke else settings, folder, smoke=smoke)
        for setting in (plan.setting for plan in found.chosen(only)):
            with about(setting.title):
                check_model(found.settings.models[setting.model], found.settings.data[setting.data].task)
        content = {"schema_version": SCHEMA_VERSION, "smoke": smoke, "settings": found.settings.model_dump(mode="json")}
        with sole_writer(folder):
            _write_json(folder / EXPERIMENT, content)
        return found

    @classmethod
    def open(cls, folder: Path) -> Experiment:
        """The experiment that was last run in a folder.

        Raises:
            ConfigurationError: There is none, or it isn't readable.
        """
        path = folder / EXPERIMENT
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings = ExperimentSettings.model_validate(content["settings"])
        except OSError as error:
            raise ConfigurationError(f"{folder}: has no {EXPERIMENT}: name the folder of an experiment") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}: isn't readable: run the experiment again into this folder") from error
        return cls(settings, folder, smoke=bool(content.get("smoke")))

    def chosen(self, only: Sequence[str] = ()) -> list[SettingPlan]:
        """The settings whose title is, or contains, one of the names; all of them without names.

        Raises:
            ConfigurationError: No setting has such a name.
        """
        titles = [plan.setting.title for plan in self.plans]
        for name in only:
            if not any(name in title for title in titles):
                raise ConfigurationError(f"setting {name!r}: there is none; {near(name, titles)}")
        return [plan for plan in self.plans if not only or any(name in plan.setting.title for name in only)]

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """All cells of the chosen settings, each once, in the order in which they can be done."""
        return all_cells(self.chosen(only))

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of some cells that have to be done."""
        return pending(cells, self.store)

    def state(self) -> dict[str, Counter[str]]:
        """How many cells of each kind are "done", "to do", "failed", or "not needed" since what needs them is done."""
        cells = self.cells()
        left = {cell.key for cell in self.left(cells)}
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for cell in cells:
            failed = cell.key in left and self.failure_path(cell).is_file()
            done = self.store.record(cell) is not None
            found[cell.kind][
                "failed" if failed else "to do" if cell.key in left else "done" if done else "not needed"
            ] += 1
        return dict(found)

    def failures(self) -> dict[str, str]:
        """Why cells failed that are still to do, by label."""
        found: dict[str, str] = {}
        for cell in self.left(self.cells()):
            path = self.failure_path(cell)
            if path.is_file():
                found[cell.label] = (path.read_text(encoding="utf-8").splitlines() or [""])[0]
        return found

    def failure_path(self, cell: Cell) -> Path:
        """Where it says why a cell failed."""
        return self.folder / FAILURES / f"{cell.name}.txt"


@dataclass
class Summary:
    """What became of a run.

    Attributes:
        cells: How many there are.
        kept: Of these, done before or not needed.
        done: Done now.
        failed: Why, by label; cells that need a failed one are counted in `blocked`.
        blocked: How many cells weren't begun since something that they need failed.
    """

    cells: int
    kept: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict[str, str])
    blocked: int = 0


def run(
    experiment: Experiment,
    cells: Sequence[Cell],
    engine: Engine,
    options: RunOptions,
    watcher: Watcher,
    *,
    keep_models: bool = True,
) -> Summary:
    """Do what is left to do of some cells.

    Args:
        experiment: What they are of.
        cells: Each after what it needs.
        engine: Runs them.
        options: Of the run.
        watcher: Is told how it goes.
        keep_models: Whether models stay that nothing needs any more.

    Raises:
        OutputError: Another process runs it.
        DependencyError: A package that training or data need is missing.
    """
    for package in ("accelerate", "datasets"):
        with needing(f"experiments need the package {package}", EXPERIMENT_EXTRA):
            import_module(package)
    left = experiment.left(cells)
    keys = {cell.key for cell in left}
    tasks = [Task(cell.key, cell, tuple(need.key for need in cell.needs if need.key in keys)) for cell in left]
    summary = Summary(len(cells), len(cells) - len(left))
    # Processes of other machines may have another working directory.
    function = partial(perform, out=experiment.folder.resolve(), options=options)
    with sole_writer(experiment.folder):
        engine.run(tasks, function, _Listener(experiment, left, watcher, summary, keep_models))
    return summary


def perform(cell: Cell, progress: Progress, *, out: Path, options: RunOptions) -> float:
    """Do a cell; what it needs is done.

    Args:
        cell: What to do.
        progress: Called as the work goes on.
        out: Folder of the experiment.
        options: Of the run.

    Returns:
        Seconds that it took.
    """
    from isobasin.loading import quiet_transformers
    from isobasin.records.provenance import versions
    from isobasin.tasks.kind import register_own_models

    register_own_models()
    began, store = time.monotonic(), Store(out)
    with store.writing(cell) as folder:
        if folder is None:
            return 0.0
        needs = tuple(store.path(need) for need in cell.needs)
        with quiet_transformers():
            result = WORK[cell.kind](Job(cell.spec, needs, folder, options, progress))
        seconds = time.monotonic() - began
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": cell.kind,
            "key": cell.key,
            "label": cell.label,
            "spec": cell.spec,
            "needs": [need.key for need in cell.needs],
            "result": result,
            "versions": versions(),
            "run": _circumstances(options) | {"seconds": seconds},
        }
        _write_json(folder / RECORD, record)
    return seconds


def _circumstances(options: RunOptions) -> dict[str, Any]:
    import torch

    return {"device": options.device, "host": platform.node(), "threads": torch.get_num_threads()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, as_json(content, indent=2) + "\n")


class _Listener:
    """Tells the watcher, counts, keeps what unexpected errors said, and removes models that nothing needs any more."""

    def __init__(
        self, experiment: Experiment, left: Sequence[Cell], watcher: Watcher, summary: Summary, keep_models: bool
    ) -> None:
        self._experiment, self._watcher, self._summary = experiment, watcher, summary
        self._keep_models = keep_models
        self._users = Counter(need.key for cell in left for need in cell.needs)

    def started(self, task: Task) -> None:
        self._watcher.started(task.payload)

    def progress(self, task: Task, what: str, done: int, total: int) -> None:
        self._watcher.progress(task.payload, what, done, total)

    def done(self, task: Task, value: Any) -> None:
        cell: Cell = task.payload
        self._summary.done += 1
        self._experiment.failure_path(cell).unlink(missing_ok=True)
        self._users.subtract(need.key for need in cell.needs)
        if not self._keep_models:
            for one in (cell, *cell.needs):
                if one.kind in TRAINED and not self._users[one.key]:
                    self._experiment.store.drop_model(one)
        self._watcher.done(cell, value)

    def failed(self, task: Task, failure: Failure) -> None:
        cell: Cell = task.payload
        if failure.because:
            self._summary.blocked += 1
        else:
            path = self._experiment.failure_path(cell)
            self._summary.failed[cell.label] = failure.message + (f" (see {path})" if failure.trace else "")
            replace_text(path, f"{failure.message}\n\n{cell.label}\n{failure.trace}")
        self._watcher.failed(cell, failure)
