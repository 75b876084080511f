"""An engine on a Ray cluster, whose machines share a file system."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobasin.errors import IsobasinError, first_line, needing
from isobasin.execution.local import check_parallel, set_threads
from isobasin.execution.tasks import Failure, Function, Listener, Schedule, Success, Task, attempt

# How often Ray begins a task again whose process or machine dies.
_RETRIES = 3
# Seconds between two looks at whether the user wants to stop.
_PATIENCE = 0.5
# Seconds that a cluster has to answer.
_KNOCKING = 10
# Of a cluster that is started here. Ray listens on all addresses of a machine, except where a firewall would ask for
# permission; the same keeps other machines off here. Others on this machine need the token.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
_TOKEN = "RAY_AUTH_TOKEN"
_LOCAL = "local"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Cluster:
    """Runs tasks on a Ray cluster; one whose process or machine dies is begun again elsewhere.

    Attributes:
        folder: Where the tasks write; every machine of the cluster has it under this path. None if they write nothing.
        address: Of the cluster; None takes what RAY_ADDRESS says, or starts one for the time of the run. That one
            listens on this machine alone, to whoever has its token.
        threads: Cores of one task, and threads of torch in it.
        gpus: GPUs of one task.
        workers: Most tasks at once; None for as many as the cluster has room for.
    """

    folder: Path | None = None
    address: str | None = None
    threads: int = 1
    gpus: float = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        check_parallel(workers=self.workers, threads=self.threads)

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        """See `Engine.run`.

        Raises:
            DependencyError: Ray is missing.
            IsobasinError: The cluster can't be reached, or one of its machines doesn't see the folder.
        """
        address = self.address or os.environ.get("RAY_ADDRESS") or _LOCAL
        ray = _ray(ours=address == _LOCAL)
        schedule = Schedule(tasks, listener)
        with _connected(ray, address):
            if address == _LOCAL:
                self._check_fits(ray)
            if self.folder is not None:
                _check_shared(ray, self.folder)
            remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=_RETRIES)(_work)
            self._run(ray, lambda task: remote.remote(function, task.payload, self.threads), schedule)

    def _run(self, ray: Any, submit: Callable[[Task], Any], schedule: Schedule) -> None:
        running: dict[Any, Task] = {}
        try:
            while True:
                # Ray would queue all, but then what starts isn't known.
                while len(running) < (self.workers or self._room(ray)):
                    task = schedule.next()
                    if task is None:
                        break
                    running[submit(task)] = task
                if not running:
                    return
                ready, _ = ray.wait(list(running), timeout=_PATIENCE)
                for reference in ready:
                    schedule.end(running.pop(reference), _outcome(ray, reference))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _check_fits(self, ray: Any) -> None:
        """Refuse tasks that this machine will never have room for; to another cluster machines may be added."""
        there: dict[str, float] = ray.cluster_resources()
        for what, needed in (("CPU", self.threads), ("GPU", self.gpus)):
            if needed > there.get(what, 0):
                raise IsobasinError(f"a task takes {needed} {what}s, and this machine has {there.get(what, 0):g}")

    def _room(self, ray: Any) -> int:
        """How many tasks the cluster has room for now; at least one, which then waits for a machine."""
        there: dict[str, float] = ray.cluster_resources()
        rooms = [there.get("CPU", 0) / self.threads]
        if self.gpus:
            rooms.append(there.get("GPU", 0) / self.gpus)
        return max(1, int(min(rooms)))


def _ray(ours: bool) -> Any:
    """The library, told to keep to itself; it hears that when it is imported.

    Args:
        ours: Whether a cluster will be started here.
    """
    os.environ.update(_QUIET)
    known = sys.modules.get("ray")
    if ours and not (known and known.is_initialized()):
        if known and any(os.environ.get(name) != value for name, value in _PRIVATE.items()):
            raise IsobasinError(
                "Ray was imported before it could be told to listen on this machine alone: import it later, or start "
                "your own cluster with ray.init()"
            )
        os.environ.update(_PRIVATE)
        os.environ[_TOKEN] = os.environ.get(_TOKEN) or secrets.token_hex(32)
    with needing("the engine ray needs Ray", 'pip install "isobasin[ray]"'):
        import ray
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Generator[None]:
    """A connection to the cluster; one that was there before is used, and left."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False} if address == _LOCAL else {}
    terminating = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "on this machine" if address == _LOCAL else f"at {address}"
        raise IsobasinError(f"Ray {where}: no connection ({first_line(error)}): check the address") from error
    # Ray has put its own handler in its place.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminating)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Knock where an address names host and port: Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _KNOCKING).close()


def _check_shared(ray: Any, folder: Path) -> None:
    """Refuse a folder that a machine of the cluster doesn't see."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = folder.resolve() / f".shared-{secrets.token_hex(4)}"
    mark.touch()
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_sees)
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        strategies = {node: NodeAffinitySchedulingStrategy(node_id=node, soft=False) for node in nodes}
        answers = {node: look.options(scheduling_strategy=there).remote(mark) for node, there in strategies.items()}
        for node, answer in answers.items():
            if not _sees_folder(ray, answer):
                raise IsobasinError(f"{folder}: {nodes[node]} doesn't see it: use a folder that all machines share")
    finally:
        mark.unlink(missing_ok=True)


def _sees_folder(ray: Any, answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError as error:
        raise IsobasinError(f"Ray: a machine of the cluster doesn't answer ({first_line(error)})") from error


def _sees(path: Path) -> bool:
    return path.exists()


def _work(function: Function, payload: Any, threads: int) -> Success | Failure:
    """What runs on the cluster."""
    set_threads(threads)
    return attempt(function, payload, _silent)


def _silent(what: str, done: int, total: int) -> None:
    """No way back for progress."""


def _outcome(ray: Any, reference: Any) -> Success | Failure:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return Failure(f"Ray gave it up after {_RETRIES + 1} attempts ({first_line(error)})")
