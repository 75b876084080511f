"""What `--dry-run` says, of every command that has it: nothing is read but configurations and headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_program import parsed
from typer.testing import Result

from isobasin.checkpoints import Checkpoint

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    ("command", "matched"),
    [
        (("align", "--scope", "block"), ["attention", "feed-forward"]),
        (("merge", "--scope", "attention"), ["attention"]),
        (("refine", "--data", "nothing.txt"), ["attention", "feed-forward", "residual stream"]),
        (("interpolate",), []),
        (("transport", "{a}"), ["attention", "feed-forward", "residual stream"]),
        (("transport", "{a}", "--scope", "block"), ["attention", "feed-forward"]),
        (("transport", "{a}", "--alignment", "{b}"), []),
        (("apply",), []),
        (("gauge", "--for", "rtn4"), ["attention", "feed-forward", "residual stream"]),
    ],
)
def test_a_dry_run_reads_no_values_and_writes_nothing(
    command: tuple[str, ...],
    matched: list[str],
    cli: Cli,
    scrambled: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Checkpoint, "read", None)
    read = {"apply": [scrambled / "alignment.isobasin", models["b"]], "gauge": [models["a"]]}
    options = [word.format(a=models["a"], b=scrambled) for word in command[1:]]
    given = read.get(command[0], [models["a"], models["b"]])
    words = (command[0], *given, *options, "-o", tmp_path / "out", "--dry-run")
    found = parsed(cli(*words, "--json"))
    assert (found["of"], found["output"]) == (command[0], str(tmp_path / "out"))
    assert [part["what"] for part in found["matched"]] == matched
    size = sum(tensor.nbytes for tensor in load_file(models["a"] / "model.safetensors").values())
    assert found["writes"] == size * (2 if command[0] == "refine" else 1)
    told = cli(*words)
    assert told.exit_code == 0, told.stderr
    assert "nothing was written" in told.stdout
    assert list(tmp_path.iterdir()) == []
