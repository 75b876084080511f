"""Run by the Python of an environment that has the wheel alone: each line of arguments on standard input, in turn.

Prints a JSON list of [exit code, last line of standard error].
"""

from __future__ import annotations

import json
import sys

from typer.testing import CliRunner

from isobasin.cli.program import app

found: list[tuple[int, str]] = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    found.append((result.exit_code, (result.stderr.strip().splitlines() or [""])[-1]))
print(json.dumps(found))
