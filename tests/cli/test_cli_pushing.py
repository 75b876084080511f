"""OUT on the hub: uploaded once it is written, private unless said otherwise; the hub itself is a stub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from typer.testing import Result

import isobasin
from isobasin.cli.program import app

Cli = Callable[..., Result]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What was made and uploaded; `failure` is raised by the commit."""
    found = SimpleNamespace(made=[], files={}, failure=None)

    class Api:
        def __init__(self, library_name: str) -> None: ...

        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> Any:
            found.made.append((repo, private, exist_ok))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo}")

        def create_commit(self, repo_id: str, operations: list[Any], commit_message: str) -> None:
            if found.failure is not None:
                raise found.failure
            for one in operations:
                content = one.path_or_fileobj
                found.files[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


def test_what_is_written_is_uploaded(cli: Cli, hub: SimpleNamespace, models: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    result = cli("scramble", models["a"], "-o", out, "--no-verify", "--push-to-hub", "model")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("Uploaded to https://huggingface.co/someone/model\n")
    assert hub.made == [("model", True, True)]
    written = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files.keys() == written.keys()
    assert all(hub.files[name] == written[name] for name in written.keys() - {"README.md"})
    metadata, text = (hub.files["README.md"].decode().split("---", 2)[part] for part in (1, 2))
    # The base is a local folder, which the hub doesn't know.
    assert "base_model" not in yaml.safe_load(metadata)
    assert "isobasin" in yaml.safe_load(metadata)["tags"]
    assert text.strip() == written["README.md"].decode().split("---", 2)[2].strip()
    assert "push_to_hub" not in written["recipe.yaml"].decode()


def test_a_public_repository_and_json(cli: Cli, hub: SimpleNamespace, models: dict[str, Path], tmp_path: Path):
    arguments = ("--no-verify", "--json", "--push-to-hub", "model", "--public")
    assert cli("scramble", models["a"], "-o", tmp_path / "out", *arguments).exit_code == 0
    assert hub.made == [("model", False, True)]


def test_a_dry_run_uploads_nothing(cli: Cli, hub: SimpleNamespace, models: dict[str, Path], tmp_path: Path):
    words = ("interpolate", models["a"], models["b"], "-o", tmp_path / "out", "--dry-run", "--push-to-hub", "model")
    assert cli(*words).exit_code == 0
    assert hub.made == []


def test_failures_are_a_line(cli: Cli, hub: SimpleNamespace, models: dict[str, Path], tmp_path: Path, monkeypatch):
    out = tmp_path / "out"

    def failed(*more: str) -> str:
        result = cli("scramble", models["a"], "-o", out, "--no-verify", *more)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "'a b' is no id of a repository on the hub: write OWNER/NAME" in failed("--push-to-hub", "a b")
    assert "--public is about what --push-to-hub makes" in failed("--public")
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "as HF_HUB_OFFLINE is set" in failed("--push-to-hub", "model")
    assert not out.exists()
    hub.failure = huggingface_hub.errors.LocalTokenNotFoundError("no token\nat all")
    said = failed("--push-to-hub", "model")
    assert f"{out}: is written, and can't be uploaded to model (LocalTokenNotFoundError: no token" in said
    assert (out / "config.json").exists()


def test_every_command_that_writes_a_model_can_upload_it():
    from typer.main import get_command

    program: Any = get_command(app)
    names = {parameter.name for parameter in program.get_command(None, "align").params}
    assert {"push_to_hub", "public"} <= names
    can = [name for name in program.list_commands(None)
           if "push_to_hub" in {parameter.name for parameter in program.get_command(None, name).params}]  # fmt: skip
    assert sorted(can) == [
        *("align", "apply", "canonicalize", "gauge", "interpolate", "merge", "refine", "scramble", "transport"),
    ]


def test_from_python(hub: SimpleNamespace, tmp_path: Path):
    with pytest.raises(isobasin.IsobasinError, match="there is nothing to upload"):
        isobasin.push_to_hub(tmp_path, "owner/name")
    (tmp_path / "config.json").write_text("{}")
    assert isobasin.push_to_hub(tmp_path, "model") == "https://huggingface.co/someone/model"
    assert hub.files == {"config.json": b"{}"}
