"""Some damaged inputs, always the same ones; and that the suite sees what it looks for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import pytest

from . import bounds, campaign, case, oracle, subjects

_SHORT, _SLICES, _CASES = 2, 6, 25


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.long] * (part >= _SHORT)) for part in range(_SLICES)]
)
def test_damaged_inputs_are_refused_in_a_line_or_do_no_harm(home: Path, part: int, tmp_path: Path):
    found = campaign.run(home, 0, range(part * _CASES, (part + 1) * _CASES), keep=tmp_path)
    assert not found.failures, "\n".join(found.failures)


def _one(verb: str) -> case.Case:
    """A case of a command whose damage is none: a file beside the weights."""
    subject, command = next((s, c) for s, c in case.ALL if c.line.startswith(verb))
    nothing = case.Mutation("files", "nothing", "checkpoint", lambda draw, path: None)
    return case.Case(0, 0, subject, command, ((nothing, "a"),))


def test_undamaged_inputs_break_no_promise(home: Path):
    for verb in ("scramble", "verify", "barrier", "merge", "transport", "gauge"):
        done, problem = case.run(_one(verb), home)
        assert (done.code, problem) == (0, "")


def _read_outside(a: Path) -> None:
    outside = a.parents[1] / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    (outside / "secret").read_bytes()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda a, out, b: (70, "error: a bug\n"), "exit code 70"),
        (lambda a, out, b: (2, "two\nlines\n"), "2 lines on stderr"),
        (lambda a, out, b: (2, "error: \x1b[31m\n"), "control characters"),
        (lambda a, out, b: (2, "error: x\n", (a / "more").touch()), "an input was changed"),
        (lambda a, out, b: (2, "error: x\n", out.mkdir()), "OUT is there after exit code 2"),
        (lambda a, out, b: (2, "error: x\n", out.with_name(".out.tmp").mkdir()), "left beside OUT"),
        (lambda a, out, b: (2, "error: x\n", tempfile.mkdtemp()), "left in the temporary directory"),
        (lambda a, out, b: (0, "", out.mkdir()), "OUT has no config.json"),
        (lambda a, out, b: (2, "error: x\n", os.system("true")), "os.system"),
        (lambda a, out, b: (2, "error: x\n", socket.getaddrinfo("localhost", 80)), "socket.getaddrinfo"),
        (lambda a, out, b: (2, "error: x\n", _read_outside(a)), "lies outside of its folder"),
        (lambda a, out, b: (2, "error: x\n", exec(compile("1", str(a / "own.py"), "exec"))), "own.py"),
        (lambda a, out, b: (0, "", shutil.copytree(b, out)), "outputs differ"),
    ],
)
def test_broken_promises_are_seen(home: Path, harm, problem, monkeypatch: pytest.MonkeyPatch):
    subject = subjects.SUBJECTS[0]
    case.prepare(subject, home)

    def run(words):
        code, err, *_ = harm(Path(words[1]), Path(words[3]), home / subject.name / "b")
        return bounds.Run(code, "", err, 0.0, 0)

    monkeypatch.setattr(bounds, "run", run)
    command = case.Command("scramble {a} -o {out}", "a", writes=True)
    planted = case.Case(0, 0, subject, command, _one("scramble").damage)
    assert problem in case.run(planted, home)[1]


def test_endless_and_greedy_runs_are_stopped(monkeypatch: pytest.MonkeyPatch):
    import isobasin.cli.program as program

    def endless(words, prog_name):
        while True:
            pass

    def greedy(words, prog_name):
        return bytearray(4 * bounds.MEMORY_BYTES)

    monkeypatch.setattr(bounds, "CPU_SECONDS", 0.2)
    for function, raised in ((endless, "TooLong"), (greedy, "MemoryError")):
        monkeypatch.setattr("typer.main.get_command", lambda app, function=function: function)
        assert bounds.run([]).raised.startswith(raised)
    assert program.app is not None


def test_who_waits_for_a_pipe_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "WALL_SECONDS", 4)
    os.mkfifo(tmp_path / "pipe")
    with bounds.released(tmp_path / "pipe") as patient:
        pass
    with bounds.released(tmp_path / "pipe") as waited:
        (tmp_path / "pipe").read_bytes()
        time.sleep(2)  # who lets go has to end meanwhile
    assert (patient, waited) == ([], ["waited for a FIFO"])


def test_a_failing_case_is_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case.prepare(case.draw(0, 0).subject, home)
    monkeypatch.setattr(bounds, "run", lambda words: bounds.Run(70, "", "error: a bug", 0.0, 0))
    found = campaign.run(home, 0, range(1), keep=tmp_path)
    kept = next(tmp_path.iterdir())
    assert len(found.failures) == 1
    assert json.loads((kept / "case.json").read_text())["code"] == 70
    assert any((kept / "inputs").iterdir())


def test_functions_are_told_apart_by_transformers(home: Path):
    for subject in subjects.SUBJECTS[:5]:
        case.prepare(subject, home)
        folder = home / subject.name
        assert oracle.unlike(subject, folder / "a", folder / "scrambled", folder / "a") == ""
        assert "outputs differ" in oracle.unlike(subject, folder / "a", folder / "b", folder / "a")
