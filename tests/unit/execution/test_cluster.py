"""The engine on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chores
import pytest
from chores import Heard, Seen, chore

from isobasin.errors import DependencyError, IsobasinError
from isobasin.execution import cluster
from isobasin.execution.cluster import Cluster
from isobasin.execution.local import Here
from isobasin.execution.tasks import Function, Listener, Task
from isobasin.experiments.cells import comparable
from isobasin.experiments.configuration import read
from isobasin.experiments.data import data_root
from isobasin.experiments.run import Experiment, run
from isobasin.experiments.settings import AblationSettings, Scope
from isobasin.experiments.work import RunOptions


@pytest.fixture(scope="module")
def machines() -> Generator[Any]:
    """A cluster whose two machines have one core each; the second one may be removed."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster as Machines

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers import the tests' own modules.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        found = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


@dataclass(frozen=True)
class Sabotaged:
    """A cluster on which accidents happen."""

    cluster: Cluster
    signs: Path

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        self.cluster.run(tasks, partial(chores.sabotaged, function=function, signs=self.signs), listener)


def begun(folder: Path) -> Experiment:
    """One setting and scope, two seeds: four cells."""
    digits = read("digits")
    setting = digits.settings[0].model_copy(update={"ablations": AblationSettings()})
    changes = {"settings": (setting,), "scopes": (Scope.first_attention,), "seeds": (1, 2)}
    return Experiment.begin(digits.model_copy(update=changes), folder, smoke=True)


def records(experiment: Experiment) -> dict[str, Any]:
    found = {cell.label: experiment.store.record(cell) for cell in experiment.cells()}
    return {label: comparable(record) for label, record in found.items() if record is not None}


def test_cells_of_a_killed_worker_and_of_a_lost_machine_are_done_again(machines: Any, tmp_path: Path):
    second = machines.add_node(num_cpus=1)
    machines.wait_for_nodes()
    signs = tmp_path / "signs"
    signs.mkdir()

    def lose_the_second_machine() -> None:
        end = time.monotonic() + 300  # the first machine may be slow to begin
        while len(list(signs.glob("on-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        machines.remove_node(second)
        (signs / "lost").touch()

    accident = threading.Thread(target=lose_the_second_machine)
    accident.start()
    options = RunOptions("cpu", data_root())
    there, here = begun(tmp_path / "ray"), begun(tmp_path / "here")
    engine = Sabotaged(Cluster(tmp_path, address=machines.address), signs)
    summary = run(there, there.cells(), engine, options, Seen())
    accident.join()

    assert (summary.done, summary.failed) == (4, {})
    attempts = Counter(path.name.split("-")[1] for path in signs.glob("attempt-*"))
    assert attempts == {"pretrain": 1, "finetune": 3, "pair": 2}
    assert (signs / f"on-{second.node_id}").exists()
    run(here, here.cells(), Here(threads=1), options, Seen())
    assert len(records(there)) == 4
    assert records(there) == records(here)
    assert not list((tmp_path / "ray" / "cells").glob(".*"))


def test_a_failure_stops_only_what_needs_it(machines: Any, tmp_path: Path):
    tasks = [
        Task("bad", {"error": "no such thing"}),
        Task("broken", {"bug": "oops"}),
        Task("child", {"value": 2}, ("bad",)),
        Task("good", {"value": 4}),
    ]
    heard = Heard()
    Cluster(tmp_path, address=machines.address).run(tasks, chore, heard)
    assert heard.values == {"good": 4}
    assert heard.failures["bad"].message == "no such thing"
    assert "raise ZeroDivisionError" in heard.failures["broken"].trace
    assert heard.failures["child"].because == "bad"


def test_an_interrupt_stops_everything(machines: Any, tmp_path: Path):
    class Interrupted(Heard):
        def done(self, task: Task, value: Any) -> None:
            raise KeyboardInterrupt

    tasks = [Task("a", {"value": 1}), Task("b", {"value": 2, "mark": str(tmp_path / "mark")}, ("a",))]
    with pytest.raises(KeyboardInterrupt):
        Cluster(tmp_path, address=machines.address).run(tasks, chore, Interrupted())
    assert not (tmp_path / "mark").exists()


def test_a_folder_that_machines_do_not_share_is_refused(machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "_sees", chores.sees_nothing)
    with pytest.raises(IsobasinError, match="doesn't see it: use a folder that all machines share"):
        Cluster(tmp_path, address=machines.address).run([Task("a", {})], chore, Heard())
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there(tmp_path: Path):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(IsobasinError, match=r"Ray at 127\.0\.0\.1:1: no connection"):
        Cluster(tmp_path, address="127.0.0.1:1").run([Task("a", {})], chore, Heard())


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r'pip install "isobasin\[ray\]"'):
        Cluster(tmp_path).run([], chore, Heard())
