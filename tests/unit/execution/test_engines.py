"""Engines on one machine: order, isolation of failures, dead workers, interrupts."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chores import Heard, chore, double, wait_for

from isobasin.execution.local import Here, Processes
from isobasin.execution.tasks import Engine, Schedule, Success, Task

ENGINES: dict[str, Engine] = {"here": Here(), "processes": Processes(2, threads=1)}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


def test_every_task_is_done_after_what_it_needs(engine: Engine):
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    heard = Heard()
    engine.run([Task(key, ord(key), need) for key, need in needs.items()], double, heard)
    assert heard.values == {key: 2 * ord(key) for key in needs}
    assert not heard.failures
    for key, need in needs.items():
        assert heard.events.count(("started", key)) == heard.events.count(("done", key)) == 1
        for other in need:
            assert heard.events.index(("done", other)) < heard.events.index(("started", key))


def test_ready_tasks_start_in_the_order_given():
    heard = Heard()
    Here().run([Task(key, 1) for key in "cab"], double, heard)
    assert [key for what, key in heard.events if what == "started"] == list("cab")
    assert heard.steps == [(key, "doubling", 1, 1) for key in "cab"]


def test_a_failure_stops_only_what_needs_it(engine: Engine):
    tasks = [
        Task("bad", {"error": "no such thing:\n  look elsewhere"}),
        Task("broken", {"bug": "oops"}),
        Task("good", {"value": 1}),
        Task("child", {"value": 2}, ("bad",)),
        Task("grandchild", {"value": 3}, ("good", "child")),
        Task("other", {"value": 4}, ("good",)),
    ]
    heard = Heard()
    engine.run(tasks, chore, heard)
    assert heard.values == {"good": 1, "other": 4}
    assert set(heard.failures) == {"bad", "broken", "child", "grandchild"}
    assert heard.failures["bad"].message == "no such thing: look elsewhere"
    assert heard.failures["bad"].trace == ""
    assert heard.failures["broken"].message == "unexpected ZeroDivisionError: oops"
    assert "raise ZeroDivisionError" in heard.failures["broken"].trace
    assert {heard.failures[key].because for key in ("child", "grandchild")} == {"bad"}
    assert ("started", "child") not in heard.events


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ([Task("a", 0), Task("a", 1)], "two tasks have one key"),
        ([Task("a", 0, ("b",)), Task("b", 0, ("a",))], "cycle"),
        ([Task("a", 0, ("a",))], "cycle"),
        ([Task("a", 0, ("nobody",))], "isn't there"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(tasks: list[Task], problem: str):
    with pytest.raises(ValueError, match=problem):
        Schedule(tasks, Heard())


def test_a_task_that_needs_two_waits_for_both():
    schedule = Schedule([Task("a", 0), Task("b", 0), Task("c", 0, ("a", "b"))], Heard())
    first, second = schedule.next(), schedule.next()
    assert (first, second) is not None
    assert schedule.next() is None
    assert first is not None
    assert second is not None
    schedule.end(second, Success(None))
    assert schedule.next() is None
    schedule.end(first, Success(None))
    third = schedule.next()
    assert third is not None
    assert third.key == "c"


def test_processes_work_at_once(tmp_path: Path):
    heard = Heard()
    tasks = [Task(str(i), {"meet": str(tmp_path), "count": 2}) for i in range(2)]
    Processes(2, threads=1).run(tasks, chore, heard)
    assert not heard.failures
    assert len(set(heard.values.values()) - {os.getpid()}) == 2


def test_threads_are_shared_out():
    heard = Heard()
    Processes(1, threads=1).run([Task("a", None)], threads, heard)
    assert heard.values == {"a": [1, "1"]}


def threads(payload: Any, progress: Any) -> list[Any]:
    return [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]]


def test_a_task_whose_process_dies_is_begun_again(tmp_path: Path):
    heard = Heard()
    tasks = [Task("dies", {"die": str(tmp_path / "died"), "value": 1}), Task("after", {"value": 2}, ("dies",))]
    Processes(1, threads=1).run(tasks, chore, heard)
    assert heard.values == {"dies": 1, "after": 2}
    assert heard.events.count(("started", "dies")) == 1


def test_a_task_whose_process_always_dies_fails_and_others_go_on():
    heard = Heard()
    Processes(1, threads=1).run([Task("dies", {"always": True}), Task("good", {"value": 1})], chore, heard)
    assert heard.values == {"good": 1}
    assert "died 2 times (SIGKILL" in heard.failures["dies"].message


@pytest.mark.parametrize("name", ENGINES)
def test_an_interrupt_stops_everything(name: str, tmp_path: Path):
    class Interrupted(Heard):
        def done(self, task: Task, value: Any) -> None:
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    later = {"sleep": 60, "mark": str(tmp_path / "mark")}
    tasks = [Task("a", {"value": 1}), Task("b", later if name == "processes" else {"mark": str(tmp_path / "mark")})]
    with pytest.raises(KeyboardInterrupt):
        ENGINES[name].run(tasks, chore, Interrupted())
    assert set(multiprocessing.active_children()) == before
    assert not (tmp_path / "mark").exists()


def test_a_process_that_drops_the_signal_still_cleans_up(tmp_path: Path):
    class Interrupted(Heard):
        def done(self, task: Task, value: Any) -> None:
            wait_for(tmp_path / "mark-begun")
            raise KeyboardInterrupt

    tasks = [Task("waits", {"stubborn": str(tmp_path / "mark")}), Task("ends", {"value": 1})]
    with pytest.raises(KeyboardInterrupt):
        Processes(2, threads=1).run(tasks, chore, Interrupted())
    assert (tmp_path / "mark").exists()


def test_a_killed_process_leaves_no_lock_behind():
    """Python's tracker of resources would say so on stderr, after all that we say."""
    program = (
        "from chores import Heard, lock_and_die\n"
        "from isobasin.execution.local import Processes\n"
        "from isobasin.execution.tasks import Task\n"
        "heard = Heard()\n"
        "Processes(1, threads=1).run([Task('dies', None)], lock_and_die, heard)\n"
        "print(heard.failures['dies'].message)\n"
    )
    folder = Path(__file__).parent
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert "SIGKILL" in ended.stdout
    assert ended.stderr == ""
