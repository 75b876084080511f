"""From options to what runs tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from isobasin.choices import Runner

if TYPE_CHECKING:
    from isobasin.execution.tasks import Engine


def engine_of(
    engine: Runner,
    ray_address: str | None,
    workers: int | None,
    threads: int | None,
    device: str,
    folder: Path | None = None,
) -> Engine | None:
    """The engine that was asked for; this process gets the threads that were.

    Args:
        engine: Its kind.
        ray_address: Of the cluster, if it is one.
        workers: Tasks at once.
        threads: Of each process.
        device: What each works on.
        folder: Where tasks write; None if they write nothing.

    Returns:
        The engine; None if all is to be done by this process alone.

    Raises:
        typer.BadParameter: There is an address, and no cluster is asked for.
    """
    from isobasin.execution.local import Processes, check_parallel, set_threads

    check_parallel(threads=threads)
    if threads is not None:
        set_threads(threads)
    if engine is Runner.ray:
        from isobasin.execution.cluster import Cluster

        there = None if folder is None else folder.resolve()
        if ":" in device:
            raise typer.BadParameter("Ray gives every task a GPU of its own: --device cuda goes with --engine ray")
        gpus = 1 if device == "cuda" else 0
        return Cluster(there, ray_address, threads=threads or 1, gpus=gpus, workers=workers)
    if ray_address is not None:
        raise typer.BadParameter("--ray-address goes with --engine ray")
    return None if workers in (None, 1) else Processes(workers, threads)
