"""Every example runs as it is: it needs no file that a user lacks. The tutorials' tests make `small_models.py`."""

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


def test_custom_architecture(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "custom_architecture.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    before, after = re.findall(r"0\.\d+|1\.0000", lines[1])
    assert before == after
    assert float(before) > 0.99
    assert all(float(line.split()[-1]) < 1e-3 for line in lines[2:])
    near, far = re.findall(r"\d+\.\d+", lines[0])[::-1]
    assert float(near) < float(far)


def test_every_example_is_run():
    tested = {name.removeprefix("test_") for name in globals()}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested | {"small_models"}


def test_pure_layer(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "pure_layer.py"))
    assert float(capsys.readouterr().out.split()[-1]) < 1e-9
