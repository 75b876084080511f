"""The examples that need no data run as they are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_barrier(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "barrier.py"))
    found = re.findall(r"^(\w+): the loss rises by (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in found] == ["naive", "aligned"]
    naive, aligned = (float(height) for _, height in found)
    assert aligned < 1e-4 < 0.05 < naive


def test_pure_layer(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "pure_layer.py"))
    assert float(capsys.readouterr().out.split()[-1]) < 1e-9
