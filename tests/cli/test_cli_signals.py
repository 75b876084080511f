"""What the program does when a signal strikes where it isn't expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_program_leaves_the_hooks_in_place(tmp_path: Path):
    """Compiled code, pyarrow's for example, hands what it drops to the hook for uncaught exceptions."""
    (tmp_path / "dropping.py").write_text(
        "import signal, sys\n"
        "from isobasin.cli.main import run\n"
        "from isobasin.cli.program import app\n"
        "@app.command()\n"
        "def drop() -> None:\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.excepthook(*sys.exc_info())\n"
        "run()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "dropping", "drop"], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    assert "KeyboardInterrupt" not in ended.stderr


def test_ctrl_c_inside_text_that_a_library_runs_keeps_the_exit_code(tmp_path: Path):
    (tmp_path / "interrupted.py").write_text(
        "from isobasin.cli.console import complain\n"
        "from isobasin.cli.failures import reported\n"
        "import typer\n"
        "complain('console loaded')\n"
        "try:\n"
        "    with reported():\n"
        "        exec('raise KeyboardInterrupt')\n"
        "except typer.Exit as end:\n"
        "    raise SystemExit(end.exit_code)\n"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr.splitlines() == ["error: console loaded", "error: interrupted"]


@pytest.mark.parametrize(("number", "code", "line"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_while_the_program_is_imported_is_answered_in_one_line(
    number: int, code: int, line: str, tmp_path: Path
):
    """Half of a quick command is importing: nobody who stops it there wants to see where it was."""
    (tmp_path / "starting.py").write_text(
        "import signal, sys\n"
        "class Striking:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'typer': signal.raise_signal({number})\n"
        "sys.meta_path.insert(0, Striking())\n"
        "from isobasin.cli.main import run\n"
        "assert 'enum' in sys.modules and 'typer' not in sys.modules and 'typing' not in sys.modules\n"
        "run()\n"
    )
    ended = subprocess.run([sys.executable, "starting.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", f"error: {line}\n")
