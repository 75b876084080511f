"""The engine on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chores
import pytest
import torch
from chores import Heard, Seen, chore

import isobasin
from isobasin.architectures.examples import tiny
from isobasin.choices import Redrawn
from isobasin.errors import DependencyError, IsobasinError
from isobasin.execution import cluster
from isobasin.execution.cluster import Cluster
from isobasin.execution.local import Here
from isobasin.execution.tasks import Function, Listener, Task
from isobasin.experiments.cells import comparable
from isobasin.experiments.configuration import read
from isobasin.experiments.data import data_root
from isobasin.experiments.run import Experiment, run
from isobasin.experiments.settings import AblationSettings
from isobasin.experiments.work import RunOptions
from isobasin.model import batches
from isobasin.verbs import blocks


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


@dataclass(frozen=True)
class Meeting:
    """A cluster whose machines all get a task, and where the first task to begin afterwards loses its process."""

    cluster: Cluster
    signs: Path

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        self.cluster.run(tasks, partial(chores.met_and_killed, function=function, signs=self.signs), listener)


def begun(folder: Path) -> Experiment:
    """One setting and scope, two seeds: four cells."""
    digits = read("digits")
    setting = digits.settings[0].model_copy(update={"ablations": AblationSettings()})
    changes = {"settings": (setting,), "scopes": (Redrawn.first_attention,), "seeds": (1, 2)}
    return Experiment.begin(digits.model_copy(update=changes), folder, smoke=True)


def records(experiment: Experiment) -> dict[str, Any]:
    found = {cell.label: experiment.store.record(cell) for cell in experiment.cells()}
    return {label: comparable(record) for label, record in found.items() if record is not None}


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(("model", "scope"), [("llama", "block"), ("gpt2", "attention")])
def test_two_machines_and_a_killed_worker_align_to_the_same_bytes(
    model: str, scope: str, machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    second = machines.add_node(num_cpus=1)
    machines.wait_for_nodes()
    monkeypatch.setattr(blocks, "batches", partial(batches, limit=1))
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        tiny(model).build(seed, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="8KB")
    a, b, here, there, signs = (tmp_path / name for name in ("a", "b", "here", "there", "signs"))
    signs.mkdir()
    isobasin.align(a, b, here, scope=scope)
    try:
        isobasin.align(a, b, there, scope=scope, engine=Meeting(Cluster(address=machines.address), signs))
    finally:
        machines.remove_node(second)
    assert len(list(signs.glob("on-*"))) == 2
    assert (signs / "died").exists()
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (here, there)]
    assert len(files[0]) > 4
    assert files[0] == files[1]


@pytest.mark.long
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


@pytest.mark.long
def test_an_interrupt_stops_everything(machines: Any, tmp_path: Path):
    class Interrupted(Heard):
        def done(self, task: Task, value: Any) -> None:
            raise KeyboardInterrupt

    tasks = [Task("a", {"value": 1}), Task("b", {"value": 2, "mark": str(tmp_path / "mark")}, ("a",))]
    with pytest.raises(KeyboardInterrupt):
        Cluster(tmp_path, address=machines.address).run(tasks, chore, Interrupted())
    assert not (tmp_path / "mark").exists()


@pytest.mark.long
def test_a_folder_that_machines_do_not_share_is_refused(machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "_sees", chores.sees_nothing)
    with pytest.raises(IsobasinError, match="doesn't see it: use a folder that all machines share"):
        Cluster(tmp_path, address=machines.address).run([Task("a", {})], chore, Heard())
    assert list(tmp_path.iterdir()) == []


_ALONE = """
import json, os, sys, psutil
from pathlib import Path
from chores import Heard, chore
from isobasin.errors import IsobasinError
from isobasin.execution.cluster import Cluster
from isobasin.execution.tasks import Task

class Looking(Heard):
    def done(self, task, value):
        super().done(task, value)
        everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [socket for process in everyone for socket in process.net_connections()]
        self.addresses = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]

heard = Looking()
Cluster(Path(sys.argv[1])).run([Task("a", {"value": 4})], chore, heard)
from ray._raylet import AuthenticationMode, get_authentication_mode
found = {"values": heard.values, "addresses": heard.addresses, "home": os.listdir(os.environ["HOME"])}
found["token"] = get_authentication_mode() == AuthenticationMode.TOKEN and len(os.environ["RAY_AUTH_TOKEN"])
try:
    Cluster(Path(sys.argv[1]), threads=1000).run([Task("a", {})], chore, heard)
except IsobasinError as error:
    found["too many"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.long
def test_a_cluster_of_our_own_listens_on_this_machine_alone_and_wants_a_token(tmp_path: Path):
    pytest.importorskip("ray", reason="Ray is not installed")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = clean | {"HOME": str(tmp_path), "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}
    (tmp_path / "shared").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path / "shared")], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["values"] == {"a": 4}
    # The driver, the store of the cluster's state, two of its node, one of every worker.
    assert len(found["addresses"]) >= 5
    assert set(found["addresses"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found["token"] == 64
    # Ray would write a token there that everyone can read.
    assert found["home"] == ["shared"]
    assert found["too many"].startswith("a task takes 1000 CPUs, and this machine has ")


def test_ray_that_was_imported_too_early_to_be_told_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(IsobasinError, match="Ray was imported before it could be told"):
        Cluster(tmp_path).run([], chore, Heard())


@pytest.mark.long
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
        Cluster(tmp_path, address="machine:1").run([], chore, Heard())
