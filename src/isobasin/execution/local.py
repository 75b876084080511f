"""Engines on this machine: this process, or several."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection, wait
from typing import Any

from isobasin.bounds import THREADS, check_number
from isobasin.execution.tasks import Failure, Function, Listener, Schedule, Success, Task, attempt
from isobasin.signals import catch_signals, leave_quickly, stop_if_asked

# Progress of a task in another process is shown, not recorded: a few reports a second are enough.
_REPORT_EVERY = 0.2
# Seconds that a process has to clean up.
_GRACE = 10
# How often a task is begun whose process dies.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Here:
    """Runs tasks one after the other in this process.

    Attributes:
        threads: Of torch; None leaves them as they are.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        check_parallel(threads=self.threads)

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        """See `Engine.run`."""
        if self.threads is not None:
            set_threads(self.threads)
        schedule = Schedule(tasks, listener)
        while (task := schedule.next()) is not None:

            def progress(what: str, done: int, total: int, task: Task = task) -> None:
                listener.progress(task, what, done, total)

            schedule.end(task, attempt(function, task.payload, progress))


@dataclass(frozen=True)
class Processes:
    """Runs tasks in several processes of this machine. A task whose process dies is begun once more.

    Attributes:
        workers: How many processes.
        threads: Of torch in each; None for an equal share of the cores.
    """

    workers: int
    threads: int | None = None

    def __post_init__(self) -> None:
        check_parallel(workers=self.workers, threads=self.threads)

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        """See `Engine.run`."""
        schedule = Schedule(tasks, listener)
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        again: deque[tuple[Task, int]] = deque()
        workers: list[_Worker] = []
        try:
            while True:
                idle = [worker for worker in workers if worker.task is None]
                while (idle or len(workers) < self.workers) and (item := _next(again, schedule)) is not None:
                    if not idle:
                        workers.append(_Worker(threads))
                        idle.append(workers[-1])
                    idle.pop().begin(function, *item)
                busy = [worker for worker in workers if worker.task is not None]
                if not busy:
                    break
                for worker in _heard(busy):
                    if not _listen(worker, schedule, listener, again):
                        workers.remove(worker)
            for worker in workers:
                worker.dismiss()
        finally:
            for worker in workers:
                worker.ask_to_end()
            for worker in workers:
                worker.end()


class _Worker:
    """A process that does one task at a time."""

    def __init__(self, threads: int) -> None:
        # A fork would copy torch's threads in whatever state they are.
        context = get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, threads), daemon=True)
        self.process.start()
        # Only then the worker's end is closed when it dies, and reading here fails instead of waiting for ever.
        far.close()
        self.task: Task | None = None
        self.attempt = 0

    def begin(self, function: Function, task: Task, number: int) -> None:
        self.task, self.attempt = task, number
        # Reading from a process that died while it was idle fails as well: there it is handled.
        with suppress(OSError):
            _send(self.connection, (function, task.payload))

    def dismiss(self) -> None:
        """Let it end by itself."""
        with suppress(OSError):
            _send(self.connection, None)
        self.process.join(_GRACE)

    def ask_to_end(self) -> None:
        """Let it clean up, without waiting for that."""
        self.process.terminate()

    def end(self) -> None:
        """Wait until it has ended, but not for ever."""
        self.process.join(_GRACE)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _next(again: deque[tuple[Task, int]], schedule: Schedule) -> tuple[Task, int] | None:
    """The task to begin now, and which attempt it is."""
    if again:
        return again.popleft()
    task = schedule.next()
    return None if task is None else (task, 1)


def _heard(busy: Sequence[_Worker]) -> list[_Worker]:
    """Wait until workers say something or die."""
    ready = wait([worker.connection for worker in busy])
    return [worker for worker in busy if worker.connection in ready]


def _listen(worker: _Worker, schedule: Schedule, listener: Listener, again: deque[tuple[Task, int]]) -> bool:
    """Take one message of a worker; False if it is dead, its task then being begun again or failed."""
    task = worker.task
    assert task is not None
    try:
        message = _receive(worker.connection)
    except (EOFError, OSError):
        worker.end()
        if worker.attempt < _ATTEMPTS:
            again.append((task, worker.attempt + 1))
        else:
            schedule.end(task, Failure(f"its process died {_ATTEMPTS} times ({_cause(worker.process.exitcode)})"))
        return False
    if isinstance(message, (Success, Failure)):
        worker.task = None
        schedule.end(task, message)
    else:
        listener.progress(task, *message)
    return True


def _send(connection: Connection[Any, Any], thing: Any) -> None:
    """Send something by its value: what a connection itself makes of a tensor is gone with the process that made it."""
    connection.send_bytes(pickle.dumps(thing))


def _receive(connection: Connection[Any, Any]) -> Any:
    return pickle.loads(connection.recv_bytes())


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps out of memory" if -code == signal.SIGKILL else name


def _serve(connection: Connection[Any, Any], threads: int) -> None:
    """What a worker does until it is ended, or the other side is gone."""
    # Ctrl-C reaches every process of the terminal; the one that runs the engine ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As an exception, so that temporary folders are removed on the way out.
    catch_signals()
    # What a library makes for processes of its own (tqdm a lock) must not outlive this one, even if it is killed:
    # spawn's semaphores do, the platform's default ones don't.
    set_start_method(None, force=True)
    leave_quickly()
    set_threads(threads)
    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        stop_if_asked()
        if time.monotonic() - last >= _REPORT_EVERY:
            last = time.monotonic()
            _send(connection, (what, done, total))

    while True:
        stop_if_asked()
        try:
            work = _receive(connection)
            if work is None:
                return
            function, payload = work
            _send(connection, attempt(function, payload, progress))
        except (EOFError, BrokenPipeError):
            return


def check_parallel(**counts: int | None) -> None:
    """Refuse numbers of threads or processes that no machine bears; None is for a number chosen here.

    Raises:
        IsobasinError: Naming the number.
    """
    for name, count in counts.items():
        if count is not None:
            check_number(name, count, 1, THREADS)


def set_threads(count: int) -> None:
    """Let torch, and what it uses, have so many threads in this process."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    # Torch reads that when it is imported, which takes seconds: only where it is here already it has to be told.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
