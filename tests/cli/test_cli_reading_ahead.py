"""Commands that read weights begin as soon as these are named; those that read headers alone don't."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from isobasin.cli import options

Cli = Callable[..., Result]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was read ahead."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(options, "read_ahead", lambda *names: found.append(names))
    return found


@pytest.mark.parametrize("verb", ["compare", "interpolate", "diagnose"])
def test_both_models(cli: Cli, begun: list[tuple[str, ...]], models: dict[str, Path], tmp_path: Path, verb: str):
    a, b = str(models["a"]), str(models["b"])
    cli(verb, a, b, *(["-o", tmp_path / "out"] if verb == "interpolate" else []))
    assert begun == [(a,), (b,)]


def test_any_number_of_models(cli: Cli, begun: list[tuple[str, ...]], tmp_path: Path):
    assert cli("merge", "a", "b", "c", "-o", tmp_path / "out").exit_code == 2
    assert begun == [("a", "b", "c")]


@pytest.mark.parametrize("verb", ["symmetry", "certify", "check"])
def test_headers_are_enough(cli: Cli, begun: list[tuple[str, ...]], models: dict[str, Path], verb: str):
    cli(verb, models["a"], *([models["b"]] if verb == "check" else []))
    assert begun == []


def test_a_dry_run_reads_headers(cli: Cli, begun: list[tuple[str, ...]], models: dict[str, Path], tmp_path: Path):
    assert cli("align", models["a"], models["b"], "-o", tmp_path / "out", "--dry-run").exit_code == 0
    assert begun == []


def test_a_shell_that_completes_words_reads_nothing(begun: list[tuple[str, ...]]):
    from typer.main import get_command

    from isobasin.cli.program import app  # its verbs are found by name

    get_command(app).make_context("isobasin", ["fingerprint", "a"], resilient_parsing=True)
    command = get_command(app).get_command(get_command(app).make_context("isobasin", []), "fingerprint")
    command.make_context("fingerprint", ["a", "-o", "x"], resilient_parsing=True)
    assert begun == []
