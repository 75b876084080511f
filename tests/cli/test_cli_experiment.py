"""`isobasin experiment`: what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from test_cli_errors import check_failed
from typer.testing import Result

from isobasin.cli.experiment_progress import watching
from isobasin.errors import OutputError
from isobasin.execution.local import Here
from isobasin.experiments.configuration import read
from isobasin.experiments.keys import schema
from isobasin.experiments.run import Experiment, run
from isobasin.experiments.work import RunOptions

pytest.importorskip("sklearn", reason="the digits need scikit-learn")

Cli = Callable[..., Result]

MODEL = {"family": "vit", "layers": 2, "width": 16, "heads": 2, "feedforward": 16, "patch": 4}
CONFIGURATION: dict[str, Any] = {
    "title": "a small one",
    "models": {"vit": MODEL, "rotary": {**MODEL, "positions": "rotary"}},
    "data": {"digits": {"source": "digits", "task": "image-classification", "max_train": 40, "max_test": 20}},
    "training": {"quick": {"steps": 2, "batch": 8, "rate": 1e-3}},
    "settings": [
        {"model": model, "data": "digits", "pretrain": "quick", "finetune": "quick"} for model in ("vit", "rotary")
    ],
    "scopes": ["first-attention"],
    "seeds": [1, 2],
    "methods": ["none", "gauss-newton"],
    "points": 3,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(CONFIGURATION))
    return path


def test_run_list_and_report(cli: Cli, config: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = cli("experiment", "run", config, "-o", out, "--only", "vit")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        "4 cells: 4 done now, 0 before or not needed.\n"
        f"Results: {out}\n"
        f"Tables and figures: isobasin experiment report {out}\n"
    )
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("[1/4")
    assert lines[-1].endswith("vit on digits: first-attention, seeds 1 and 2")

    result = cli("experiment", "list", out)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["a", "small", "one"]
    assert ["finetune", "2", "2", "0", "0"] in rows

    result = cli("experiment", "run", config, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {name: found[name] for name in ("output", "smoke", "cells", "kept", "done", "failed", "blocked")} == {
        "output": str(out),
        "smoke": False,
        "cells": 8,
        "kept": 4,
        "done": 4,
        "failed": {},
        "blocked": 0,
    }

    result = cli("experiment", "report", out, "--json")
    assert result.exit_code == 0, result.stderr
    files = [Path(file) for file in json.loads(result.stdout)["files"]]
    assert out / "report" / "report.html" in files
    assert all(file.stat().st_size > 0 for file in files)


def test_failing_cells_are_listed_and_the_code_is_1(cli: Cli, tmp_path: Path):
    wrong = {**CONFIGURATION, "models": {**CONFIGURATION["models"], "rotary": {**MODEL, "patch": 3}}}
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(wrong))
    result = cli("experiment", "run", config, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "8 cells: 4 done now, 0 before or not needed, 1 failed, 3 not begun." in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: rotary on digits: pretraining: ")
    assert "patches of side 3" in errors[0]
    result = cli("experiment", "list", tmp_path / "out")
    assert "failed: rotary on digits: pretraining: " in result.stdout


def test_packaged_configurations_are_listed(cli: Cli):
    result = cli("experiment", "list")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["name", "cells", "title"]
    assert ["digits", "73"] in [row[:2] for row in rows]
    names = [row["name"] for row in json.loads(cli("experiment", "list", "--json").stdout)["configurations"]]
    assert names[:3] == ["apart", "demo", "digits"]
    assert "paper/gpt2-enwik8" in names


def test_a_packaged_configuration_becomes_a_file_of_ones_own(cli: Cli, tmp_path: Path):
    own = tmp_path / "my.yaml"
    own.write_text(cli("experiment", "init", "paper/vit-mnist").stdout)
    assert read(own) == read("paper/vit-mnist")
    assert own.read_text().startswith("# yaml-language-server: $schema=experiment.schema.json\n# ")
    check_failed(cli("experiment", "init", str(own)), "is no packaged configuration")
    check_failed(cli("experiment", "init", "digitz"), "did you mean 'digits'?")


def test_editors_get_a_schema(cli: Cli):
    assert json.loads(cli("experiment", "schema").stdout) == schema()


def test_help_names_the_commands_and_an_example(cli: Cli):
    for arguments in (("experiment",), ("experiment", "--help")):
        result = cli(*arguments)
        assert result.exit_code == 0
        for part in ("run", "list", "report", "Example: isobasin experiment run digits --smoke"):
            assert part in result.stdout
    for verb in ("run", "list", "report"):
        assert f"Example: isobasin experiment {verb}" in cli("experiment", verb, "--help").stdout


def test_what_is_wrong_is_one_line(cli: Cli, config: Path, tmp_path: Path):
    out = ("-o", tmp_path / "out")
    check_failed(cli("experiment", "run", "digitz", *out), "digitz", "did you mean 'digits'?")
    check_failed(cli("experiment", "run", tmp_path / "none.yaml", *out), "no such file")
    check_failed(cli("experiment", "run", config, *out, "--ray-address", "x:1"), "--engine ray")
    check_failed(cli("experiment", "run", config, *out, "--workers", "0"), "--workers", "greater than or equal to 1")
    check_failed(cli("experiment", "runn"), "No such command 'runn'")
    check_failed(cli("experiment", "run", config, *out, "--only", "vti on digits"), "did you mean 'vit on digits'?")
    assert not (tmp_path / "out").exists()
    check_failed(cli("experiment", "list", tmp_path), "has no experiment.json")
    check_failed(cli("experiment", "report", tmp_path), "has no experiment.json")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    check_failed(cli("experiment", "run", config, "-o", tmp_path / "mine"), "isn't an experiment's")


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_an_interrupted_run_says_how_to_go_on_and_does(workers: str, config: Path, tmp_path: Path):
    slow = {**CONFIGURATION, "training": {"quick": {"steps": 100_000, "batch": 8, "rate": 1e-3}}}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(slow))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isobasin", "experiment", "run", str(tmp_path / "slow.yaml"), "-o", str(out)]
    running = subprocess.Popen(
        [*command, "--workers", workers],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 600
    while not list(out.glob("cells/.pretrain-*.partial/model")) and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 130
    assert errors.splitlines()[-2:] == [
        "What is done is kept: the same command goes on from here.",
        "error: interrupted",
    ]
    assert "Traceback" not in errors
    assert [path.name for path in out.glob("cells/*/record.json")] == []


def test_what_is_left_is_divided_among_those_that_run_at_once():
    """Where one has just ended, the next of its place isn't running yet."""
    cells: list[Any] = [SimpleNamespace(kind="pair", key=name, label=name) for name in "abcd"]
    screen = Console(file=io.StringIO(), width=80)
    with watching(cells, screen) as watcher:
        for one, two in (cells[:2], cells[2:]):
            watcher.started(one)
            watcher.started(two)
            watcher.done(one, 600.0)
            watcher.done(two, 600.0)
    assert screen.file.getvalue().splitlines() == [
        "[1/4, about 15 min left] done in 600.0 s: a",
        "[2/4, about 10 min left] done in 600.0 s: b",
        "[3/4, about 10 min left] done in 600.0 s: c",
        "[4/4] done in 600.0 s: d",
    ]


def test_what_runs_is_said_where_a_cell_takes_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("isobasin.cli.console._FIRST", 0.05)
    cell: Any = SimpleNamespace(kind="pretrain", key="0", label="vit on digits: pretraining")
    screen = Console(file=io.StringIO(), width=200)
    with watching([cell], screen) as watcher:
        watcher.started(cell)
        watcher.progress(cell, "training", 30, 600)
        time.sleep(0.15)
        watcher.done(cell, 0.15)
    said = "[0/1] running (0 s): vit on digits: pretraining (training 30/600)"
    assert screen.file.getvalue().splitlines() == [said, "[1/1] done in 0.1 s: vit on digits: pretraining"]


def test_a_folder_that_another_process_writes_into_is_refused(cli: Cli, config: Path, tmp_path: Path):
    out = tmp_path / "out"
    Experiment.begin(read(config), out)
    before = (out / "experiment.json").read_bytes()
    holding = (
        "import sys, time; from pathlib import Path; from isobasin.checkpoints.output import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holding, out], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        check_failed(cli("experiment", "run", "digits", "-o", out), out, "another process is writing into it")
        begun = Experiment.open(out)
        with pytest.raises(OutputError, match="another process"):
            run(begun, [], Here(), RunOptions("cpu", tmp_path), None)  # type: ignore[arg-type]
        other.kill()
    assert (out / "experiment.json").read_bytes() == before
    run(begun, [], Here(), RunOptions("cpu", tmp_path), None)  # type: ignore[arg-type]
    assert [path.name for path in out.iterdir()] == ["experiment.json"]
