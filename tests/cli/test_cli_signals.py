"""What the program does when a signal strikes where it isn't expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_program_leaves_the_hooks_in_place(tmp_path: Path):
    """Compiled code, pyarrow's for example, hands what it drops to the hook for uncaught exceptions."""
    (tmp_path / "dropping.py").write_text(
        "import signal, sys\n"
        "from isobasin.cli.main import app, run\n"
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
