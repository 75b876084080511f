"""`isobasin certify`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from isobasin.architectures import building

Cli = Callable[..., Result]
KEYS = {
    *("layer", "block", "group", "parameters", "stated", "measured", "gap", "missing", "wrong", "hidden"),
    *("hidden_gap", "hidden_expected", "verdict", "exact"),
}


def test_all_variants_as_json(cli: Cli):
    result = cli("certify", "gpt_neox", "--all-variants", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["exact"] is True
    assert [one["name"] for one in found["certificates"]][:2] == ["gpt_neox", "gpt_neox-no-bias"]
    for certificate in found["certificates"]:
        assert certificate["exact"] is certificate["made"] is True
        assert [block.keys() == KEYS and block["verdict"] for block in certificate["blocks"]] == ["exact"] * 4


@pytest.mark.parametrize("columns", [80, 120])
def test_in_words_it_fits_a_screen(cli: Cli, columns: int, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = cli("certify", models["two-heads"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.split()[:4] == ["attention", "1", "288", "80"] for line in lines)
    assert "…" not in result.stdout
    assert "Measured on a small random model of the same kind." in lines
    assert lines[-1] == "Exact: the stated groups are all that the blocks don't see."


def test_a_wrong_group_ends_with_code_1(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    right = building.attention_group

    def without_key_shift(*args: Any) -> Any:
        return replace(right(*args), key_shift=False)

    monkeypatch.setattr(building, "attention_group", without_key_shift)
    result = cli("certify", "gpt_neox")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert "Layer 1, attention: the stated group is too small: 4 symmetries missing." in result.stdout
    assert "Exact:" not in result.stdout


def test_bad_input_is_one_line(cli: Cli, models: dict[str, Path], tmp_path: Path):
    for arguments, said in (
        ((tmp_path / "none",), "no such folder"),
        (("gpt3",), "gpt3"),
        (("gptt2", "--all-variants"), "did you mean gpt2"),
        ((models["a"], "--all-variants"), "unknown model type"),
    ):
        result = cli("certify", *arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_family_that_is_mistyped_is_told_from_a_model(cli: Cli):
    result = cli("certify", "lama")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: lama: no family: did you mean llama")
    assert len(result.stderr.splitlines()) == 1
