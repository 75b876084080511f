"""The program in a process of its own: exit codes, streams, signals, and what `--help` imports."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_program import Forked, at_call, command, environment, run_process
from typer.testing import Result

from isobasin.checkpoints import writer


def test_help_imports_nothing_heavy():
    script = (
        "import sys, isobasin\n"
        "from isobasin.cli.program import app\n"
        "for arguments in ([], ['--help'], ['align', '--help'], ['--version']):\n"
        "    app(arguments, prog_name='isobasin', standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'scipy', 'safetensors'}\n"
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: isobasin align" in done.stdout


def test_without_docstrings_it_says_why_it_cannot_run():
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "isobasin", "families"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: python -OO")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "offered"),
    [("isobasin al", ["align"]), ("isobasin align --scope ", ["attention", "block", "model"])],
)
def test_a_shell_completes_commands_and_choices(words: str, offered: list[str]):
    asked = {"_ISOBASIN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = [sys.executable, "-m", "isobasin"]
    ended = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == offered


def test_align_imports_what_later_steps_need_after_the_first_tensor_is_read(models: dict[str, Path], tmp_path: Path):
    script = (
        "import sys\n"
        "from isobasin.checkpoints import Checkpoint\n"
        "from isobasin.cli.program import app\n"
        "late = {'scipy', 'pandas', 'datasets', 'isobasin.models', 'isobasin.refinement', 'isobasin.lines',\n"
        "    'transformers.modeling_utils', 'transformers.models.llama.modeling_llama'}\n"
        "def read(*arguments):\n"
        "    print('read', *sorted(late & sys.modules.keys()), flush=True)\n"
        "    sys.exit()\n"
        "Checkpoint.read = read\n"
        "app(sys.argv[1:])\n"
    )
    folder = str(models["llama"])
    started = [sys.executable, "-c", script, "align", folder, folder, "-o", str(tmp_path / "out")]
    done = subprocess.run(started, capture_output=True, text=True, env=environment(), timeout=600)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    assert [line for line in said if not line.startswith("progress: ")] == ["read"]


def test_align_prints_json_alone(models: dict[str, Path], scrambled: Path, tmp_path: Path):
    code, said, errors = Forked("align", models["a"], scrambled, "-o", tmp_path / "out", "--json").end()
    assert (code, errors) == (0, "")
    assert json.loads(said)["verified"]["equal"] is True


def test_a_failure_is_one_line_on_stderr(models: dict[str, Path], tmp_path: Path):
    code, said, errors = Forked("align", models["a"], tmp_path / "none", "-o", tmp_path / "out", "--json").end()
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert errors == f"error: {json.loads(said)['error']['message']}\n"
    assert errors.count("\n") == 1


def test_progress_goes_to_a_terminal_and_results_to_a_pipe(models: dict[str, Path], tmp_path: Path):
    ours, theirs = pty.openpty()
    arguments = command("scramble", models["llama"], "-o", tmp_path / "out", "--json")
    variables = environment(TERM="xterm", COLUMNS="80")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=variables) as process:
        os.close(theirs)
        screen = b""
        while chunk := _read(ours):
            screen += chunk
        assert process.stdout is not None
        output = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(output)["verified"]["equal"] is True
    assert b"verifying" in screen
    assert b"error" not in screen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # what Linux says when the other side has closed
        return b""


def _interrupted(models: dict[str, Path], out: Path, number: int) -> tuple[int, str, str]:
    """A signal strikes `align` while its output is half written; exit code, stdout and stderr."""

    def planted() -> None:
        at_call(writer, "_write_config", number)

    return Forked("align", models["a"], models["b"], "-o", out, first=planted).end()


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_clean_up(number: int, code: int, line: str, models: dict[str, Path], tmp_path: Path):
    assert _interrupted(models, tmp_path / "out", number) == (code, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_output(models: dict[str, Path], tmp_path: Path, cli: Callable[..., Result]):
    out = tmp_path / "out"
    assert _interrupted(models, out, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not out.exists()
    assert all(entry.name.startswith(".isobasin-partial-") for entry in tmp_path.iterdir())
    assert cli("align", models["a"], models["b"], "-o", out, "--no-verify").exit_code == 0
    assert list(tmp_path.iterdir()) == [out]


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        command("--version"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_streams_that_are_closed_or_full():
    """Whoever closes stdout wants no results, but the work; what can't be printed is an error of one line."""
    for closed, code in (("<&- >&-", 0), (">&- 2>&-", 0), ("> /dev/full", 2)):
        arguments = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("--version")]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=600)
        said = "error: No space left on device\n" if code else ""
        assert (done.returncode, done.stdout, done.stderr) == (code, "", said), closed


def test_the_installed_program_is_the_module():
    program = Path(sys.executable).with_name("isobasin")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment(), timeout=600)
    assert done.stdout == run_process("--version").stdout
    assert done.stdout.startswith("isobasin ")
