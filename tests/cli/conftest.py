"""Tiny checkpoints shared by the tests of the program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from json_schemas import check
from tiny_program import gpt2, llama
from typer.testing import CliRunner, Result

from isobasin.cli.program import app


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by name; tests must not change them."""
    home = tmp_path_factory.mktemp("models")
    return {
        "a": gpt2(home / "a", 0),
        "b": gpt2(home / "b", 1),
        "wide": gpt2(home / "wide", n_embd=32),
        "two-heads": gpt2(home / "two-heads", n_head=2),
        "deep": gpt2(home / "deep", n_layer=3),
        "llama": llama(home / "llama"),
    }


@pytest.fixture(scope="session")
def scrambled(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model "a" with other weights and the same function, written by the program."""
    folder = tmp_path_factory.mktemp("scrambled") / "a"
    result = CliRunner().invoke(app, ["scramble", str(models["a"]), "-o", str(folder), "--seed", "4"])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run a command in this process; what `--json` prints is held to its schema."""

    def run(*arguments: object) -> Result:
        words = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, words)
        if "--json" in words:
            check(result.stdout)
        return result

    return run


@pytest.fixture
def copied(models: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a checkpoint that may be broken."""

    def copy(name: str = "b") -> Path:
        folder = tmp_path / "inputs" / "broken"
        shutil.copytree(models[name], folder)
        return folder

    return copy
