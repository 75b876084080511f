"""Every tutorial runs as it is written: its commands, files and Python, in order and in one folder."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isobasin.cli.program import app

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
MODELS = ROOT / "examples" / "small_models.py"
BLOCK = re.compile(r'^```(\w+)(?: title="(.+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"#\s*exit code (\d+)$")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python small_models.py` makes."""
    folder = tmp_path_factory.mktemp("tutorials")
    runpy.run_path(str(MODELS))["make"](folder)
    return folder


def lines(block: str) -> Iterator[tuple[list[str], int]]:
    """The commands of a block, and the exit code of each."""
    for line in block.replace("\\\n", " ").splitlines():
        code = EXIT_CODE.search(line)
        if words := shlex.split(line, comments=True):
            yield words, int(code[1]) if code else 0


def run(words: list[str], code: int) -> None:
    """One command in this process; the models are there already."""
    if words == ["python", MODELS.name, "."]:
        return
    assert words[0] == "isobasin", words
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == code, f"{shlex.join(words)}: exit code {result.exit_code}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tutorial_runs(page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.copy(MODELS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, MODELS.stem, raising=False)
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(page.read_text())
    assert {language for language, _, _ in blocks} >= {"bash", "python"}
    for language, title, block in blocks:
        if title:
            Path(title).write_text(block)
        elif language == "python":
            exec(compile(block, page.name, "exec"), names)
        else:
            assert language == "bash", language
            for words, code in lines(block):
                run(words, code)
