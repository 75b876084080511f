"""`gauge` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Cli = Callable[..., Result]
QUICK = ("--tries", "1", "--steps", "2")


def test_gauge_says_what_rounding_costs(cli: Cli, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    result = cli("gauge", models["llama"], "--for", "rtn3", "--group", "16", *QUICK, "-o", out, "--json")
    found = json.loads(result.stdout)
    assert found["schema_version"] == 1
    assert "schema" not in found
    assert found["rounding"] == "rtn3, groups of 16"
    assert found["by"] == "weights"
    assert found["loss"] is found["before"]["loss"] is None
    assert found["starts"].keys() == {"as trained", "seed 0"}
    assert found["learned"]["after"] <= found["starts"]["as trained"]
    assert found["verified"]["equal"]
    assert json.loads(cli("verify", models["llama"], out, "--json").stdout)["equal"]


def test_gauge_by_data_shows_losses(cli: Cli, models: dict[str, Path], tmp_path: Path):
    (tmp_path / "text.txt").write_text("abcd\n" * 60)
    (tmp_path / "characters.json").write_text(json.dumps(list("\nabcd")))
    data = ("--data", tmp_path / "text.txt", "--tokenizer", tmp_path / "characters.json", "--length", "16")
    how = ("--for", "rtn4", "--group", "channel", *data, *QUICK, "--batch-size", "4")
    shown = cli("gauge", models["llama"], *how, "-o", tmp_path / "out")
    assert shown.exit_code == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["rtn4,", "a", "scale", "per", "output", "error", "of", "weights", "loss", "KL"] in rows
    assert [" ".join(row[:2]) for row in rows if row][2:5] == ["not rounded", "as trained", "in this"]
    assert "Cost by predictions, on what was held out:" in shown.stdout


def test_gauge_refuses_in_a_line(cli: Cli, models: dict[str, Path], tmp_path: Path):
    for problem, how in (
        ("'0': give a number of inputs from 1 on, or channel", ("--for", "rtn4", "--group", "0")),
        ("group is 16, and nvfp4 has groups of 16: leave it out", ("--for", "nvfp4", "--group", "16")),
        ("by layers is measured on data: give --data", ("--for", "rtn4", "--by", "layers")),
        ("rtn5", ("--for", "rtn5")),
        ("--for", ()),
    ):
        result = cli("gauge", models["llama"], *how, "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert problem in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
