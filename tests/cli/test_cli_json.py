"""What `--json` prints: every command has a schema, and failures are objects too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from json_schemas import FOLDER, check, path_of, sketch
from typer.main import get_command
from typer.testing import Result

from isobasin.cli.program import app

Cli = Callable[..., Result]
PROGRAM: Any = get_command(app)


def commands() -> list[str]:
    """All commands that have --json, those of groups included."""
    found: list[str] = []
    for name in PROGRAM.list_commands(None):
        command = PROGRAM.get_command(None, name)
        inner = getattr(command, "commands", None)
        parts = {name: command} if inner is None else {f"{name} {key}": value for key, value in inner.items()}
        found += [key for key, value in parts.items() if any(p.name == "as_json" for p in value.params)]
    return found


def test_every_command_has_a_schema_and_no_other_is_there():
    expected = {path_of(command).name for command in commands() if command != "run"}  # that prints what it runs
    assert {path.name for path in FOLDER.glob("*.json")} == expected | {"common.json", "error.json", "dry-run.json"}
    for path in FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == path.name


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("scramble", "nowhere", "-o", "out", "--json"), "CheckpointError", "nowhere"),
        (("align", "a", "--json"), "MissingParameter", "Missing argument 'MODEL'"),
        (("nonsense", "--json"), "UsageError", "No such command 'nonsense'"),
        (("scramble", "a", "-o", "x", "--json", "--scope", "heads"), "BadParameter", "--scope"),
    ],
)
def test_a_failure_is_an_object_on_stdout_and_a_line_on_stderr(words: tuple[str, ...], kind: str, said: str, cli: Cli):
    result = cli(*words)
    found = check(result.stdout)
    assert (found["command"], found["error"]["type"], found["error"]["exit_code"]) == (words[0], kind, 2)
    assert said in found["error"]["message"]
    assert result.stderr == f"error: {found['error']['message']}\n"
    plain = cli(*(word for word in words if word != "--json"))
    assert (plain.stdout, plain.exit_code) == ("", 2)


def test_an_object_of_another_shape_is_seen(cli: Cli, models: dict[str, Path], tmp_path: Path):
    printed = json.loads(cli("interpolate", models["a"], models["b"], "-o", tmp_path / "out", "--json").stdout)
    for wrong in ({"more": 1}, {"t": "0.5"}, {"schema_version": 2}, {"verified": {"equal": True}}):
        with pytest.raises(jsonschema.ValidationError):
            check(json.dumps(printed | wrong))
    with pytest.raises(jsonschema.ValidationError):
        check(json.dumps({key: value for key, value in printed.items() if key != "output"}))
    jsonschema.validate(printed, sketch([printed]))
