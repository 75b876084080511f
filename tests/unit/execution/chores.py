"""Tasks for engines, in a module of their own so that other processes can import them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobasin.errors import IsobasinError
from isobasin.execution.tasks import Failure, Function, Task

Progress = Callable[[str, int, int], None]


@dataclass
class Heard:
    """A listener that keeps what it hears."""

    events: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    steps: list[tuple[str, str, int, int]] = field(default_factory=list)

    def started(self, task: Task) -> None:
        self.events.append(("started", task.key))

    def progress(self, task: Task, what: str, done: int, total: int) -> None:
        self.steps.append((task.key, what, done, total))

    def done(self, task: Task, value: Any) -> None:
        self.events.append(("done", task.key))
        self.values[task.key] = value

    def failed(self, task: Task, failure: Failure) -> None:
        self.events.append(("failed", task.key))
        self.failures[task.key] = failure


class Seen:
    """A watcher of cells that looks away."""

    def started(self, cell: Any) -> None:
        pass

    def progress(self, cell: Any, what: str, done: int, total: int) -> None:
        pass

    def done(self, cell: Any, seconds: float) -> None:
        pass

    def failed(self, cell: Any, failure: Failure) -> None:
        pass


# Seconds for others to come, on a machine that has much else to do.
_PATIENCE = 600


def double(payload: Any, progress: Progress) -> Any:
    progress("doubling", 1, 1)
    return 2 * payload


def chore(payload: dict[str, Any], progress: Progress) -> Any:
    """Do what the payload says."""
    if "error" in payload:
        raise IsobasinError(payload["error"])
    if "bug" in payload:
        raise ZeroDivisionError(payload["bug"])
    if "die" in payload:
        die_once(Path(payload["die"]))
    if "always" in payload:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stubborn" in payload:
        stubborn(Path(payload["stubborn"]), progress)
    if "sleep" in payload:
        time.sleep(payload["sleep"])
    if "mark" in payload:
        Path(payload["mark"]).write_text(str(os.getpid()))
    if "meet" in payload:
        return meet(Path(payload["meet"]), payload["count"])
    return payload.get("value", os.getpid())


def sabotaged(payload: Any, progress: Progress, *, function: Function, signs: Path) -> Any:
    """Do a cell, after every accident there is: on the first attempt one kind of cell loses its process, another its
    machine."""
    kind = payload.kind
    (signs / f"attempt-{kind}-{uuid.uuid4().hex}").touch()
    if kind == "pair":
        die_once(signs / "died")
    if kind == "finetune":
        wait_for_the_loss(signs)
    return function(payload, progress)


def killed_once(payload: Any, progress: Progress, *, function: Function, mark: Path) -> Any:
    """Do a task; the first that begins anywhere is killed."""
    die_once(mark)
    return function(payload, progress)


def met_and_killed(payload: Any, progress: Progress, *, function: Function, signs: Path) -> Any:
    """Do a task once two machines have one; the first that goes on is killed."""
    import ray

    (signs / f"on-{ray.get_runtime_context().get_node_id()}").touch()
    end = time.monotonic() + _PATIENCE
    while len(list(signs.glob("on-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return killed_once(payload, progress, function=function, mark=signs / "died")


def wait_for_the_loss(signs: Path) -> None:
    """Say on which machine this is, and wait until one is lost."""
    import ray

    (signs / f"on-{ray.get_runtime_context().get_node_id()}").touch()
    wait_for(signs / "lost")


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} was not written")
        time.sleep(0.02)


def stubborn(mark: Path, progress: Progress) -> None:
    """Drop what the first signal raises, as some libraries do, and go on; leave a mark on the way out."""
    try:
        try:
            Path(f"{mark}-begun").touch()
            time.sleep(60)
        except SystemExit:
            pass
        while True:
            progress("going on", 0, 1)
            time.sleep(0.01)
    finally:
        mark.touch()


def lock_and_die(payload: Any, progress: Progress) -> None:
    """Make a lock for processes, as tqdm does, and be killed."""
    lock = multiprocessing.RLock()
    with lock:
        os.kill(os.getpid(), signal.SIGKILL)


def sees_nothing(path: Path) -> bool:
    return False


def die_once(mark: Path) -> None:
    """Kill this process, unless that was done before."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def meet(folder: Path, count: int) -> int:
    """Wait for others: only tasks that run at once ever meet."""
    (folder / f"{os.getpid()}-{threading.get_ident()}").touch()
    end = time.monotonic() + _PATIENCE
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > end:
            raise TimeoutError("the others didn't come")
        time.sleep(0.02)
    return os.getpid()
