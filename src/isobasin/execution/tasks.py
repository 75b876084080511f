"""Tasks that need each other, and what becomes of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import Any, Protocol

from isobasin.errors import IsobasinError
from isobasin.text import one_line

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are, and how many there are."""

Function = Callable[[Any, Progress], Any]
"""What is done with a task's payload. It is sent to other processes by name, so it lies in a module."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to do.

    Attributes:
        key: Its name.
        payload: What the function gets; it can be pickled.
        needs: Keys of the tasks that have to be done before.
    """

    key: str
    payload: Any
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a task isn't done.

    Attributes:
        message: One line.
        trace: The traceback of an unexpected error, or "".
        because: Key of the failed task that this one needs; "" if it failed itself.
        error: What it refused, as it was raised; None if it failed otherwise.
    """

    message: str
    trace: str = ""
    because: str = ""
    error: IsobasinError | None = None


@dataclass(frozen=True)
class Success:
    """What a task returned."""

    value: Any


class Listener(Protocol):
    """Who is told how it goes; all calls come from the thread that runs the engine."""

    def started(self, task: Task) -> None:
        """A task begins."""

    def progress(self, task: Task, what: str, done: int, total: int) -> None:
        """A step of a running task is done; only some engines say so."""

    def done(self, task: Task, value: Any) -> None:
        """A task returned something."""

    def failed(self, task: Task, failure: Failure) -> None:
        """A task failed, or can't be run since one that it needs failed."""


class Engine(Protocol):
    """Runs tasks."""

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        """Do all tasks, each as soon as what it needs is done; a failure stops only what needs the failed task.

        An exception of the listener, and an interrupt, stop everything: no process that the engine started is left.

        Raises:
            ValueError: A task needs one that isn't there, or in the end itself, or two have one key.
        """
        ...


def attempt(function: Function, payload: Any, progress: Progress) -> Success | Failure:
    """Do a task; what goes wrong becomes a failure, an interrupt excepted."""
    try:
        return Success(function(payload, progress))
    except IsobasinError as error:
        return Failure(one_line(str(error)), error=error)
    except Exception as error:
        return Failure(one_line(f"unexpected {type(error).__name__}: {error}"), traceback.format_exc())


class Schedule:
    """Which tasks may start, the first in the order given before others; it tells the listener."""

    def __init__(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Check the graph.

        Raises:
            ValueError: A task needs one that isn't there, or in the end itself, or two have one key.
        """
        self._tasks, self._listener = tasks, listener
        self._places = {task.key: place for place, task in enumerate(tasks)}
        if len(self._places) < len(tasks) or any(need not in self._places for task in tasks for need in task.needs):
            raise ValueError("two tasks have one key, or one needs a task that isn't there")
        self._graph = TopologicalSorter({task.key: task.needs for task in tasks})
        self._graph.prepare()
        self._ready: list[int] = []
        self._lost: dict[str, str] = {}

    def next(self) -> Task | None:
        """Take the first task whose needs are done, if there is one now; the listener hears that it starts.

        It also hears of tasks that can't start any more, since one that they need failed.
        """
        while True:
            for key in self._graph.get_ready():
                heappush(self._ready, self._places[key])
            if not self._ready:
                return None
            task = self._tasks[heappop(self._ready)]
            because = next((self._lost[need] for need in task.needs if need in self._lost), None)
            if because is None:
                self._listener.started(task)
                return task
            self._fail(task, Failure("what it needs failed", because=because), because)

    def end(self, task: Task, outcome: Success | Failure) -> None:
        """Note how a task ended."""
        if isinstance(outcome, Failure):
            self._fail(task, outcome, task.key)
            return
        self._graph.done(task.key)
        self._listener.done(task, outcome.value)

    def _fail(self, task: Task, failure: Failure, because: str) -> None:
        """Note that a task failed, and which one's failure began that."""
        self._graph.done(task.key)
        self._lost[task.key] = because
        self._listener.failed(task, failure)
