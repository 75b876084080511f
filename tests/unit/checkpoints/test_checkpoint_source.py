from __future__ import annotations

import os
import time
from pathlib import Path

import huggingface_hub
import pytest
from checkpoint_folders import single, write_config
from huggingface_hub import constants, errors

from isobasin.checkpoints import resolve
from isobasin.errors import CheckpointError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def refusal(source: str | os.PathLike[str]) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(single(tmp_path / "model")) == tmp_path / "model"
    assert resolve(str(tmp_path / "model")) == tmp_path / "model"


def test_a_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    assert resolve("gpt2") == Path("gpt2")


def test_a_file_is_refused(tmp_path: Path) -> None:
    message = refusal(single(tmp_path) / "model.safetensors")
    assert "pass the folder" in message
    assert "model.safetensors" in message


@pytest.mark.parametrize(
    "source", ["./missing", "/missing/model", "../model", "a/b/c", "", "a--b", "x" * 400, "mo\0del"]
)
def test_what_cannot_be_a_hub_id_is_a_missing_folder(source: str) -> None:
    assert "no such folder" in refusal(source)


@pytest.mark.parametrize("source", ["gpt2", "owner/name"])
def test_offline_fails_fast_and_says_how_to_go_on(source: str) -> None:
    start = time.monotonic()
    message = refusal(source)
    assert time.monotonic() - start < 5
    assert message.startswith(f"{source}: is not a local folder")
    assert "HF_HUB_OFFLINE is set" in message
    assert f"hf download {source}" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("no\nsnapshot"), "can't be reached: download it first"),
        (ConnectionError("refused\nagain"), "can't be reached: download it first"),
        (OSError(28, "No space left on device"), "download failed (OSError: [Errno 28] No space left on device)"),
        (ValueError(), "download failed (ValueError: ValueError)"),
    ],
)
def test_every_failure_of_the_hub_is_one_line(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert words in refusal("owner/name")


@pytest.mark.parametrize(
    ("kind", "words"), [(errors.GatedRepoError, "gated"), (errors.RepositoryNotFoundError, "no such model")]
)
def test_a_gated_or_unknown_model(kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise kind.__new__(kind)  # their constructors want an HTTP response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("owner/name")
    assert words in message
    assert "hf auth login" in message


def hub(folder: Path, files: list[str], calls: list[list[str]]):
    """A hub with one model."""
    from huggingface_hub.utils import filter_repo_objects

    def download(repo_id: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        kept = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        calls.append(sorted(kept))
        for name in calls[-1]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        return str(folder)

    return download


def test_only_one_copy_of_the_weights_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["README.md", "config.json", "merges.txt", "model.safetensors", "tokenizer.model"]
    others = ["consolidated.safetensors", "fp16/model.safetensors", "pytorch_model.bin", "modeling_x.py", "m.gguf"]
    calls: list[list[str]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub(write_config(tmp_path), wanted + others, calls))
    assert resolve("owner/name", allow_pickle=True) == tmp_path
    assert calls == [wanted]


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_pickles_are_downloaded_only_on_request(
    allow_pickle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    files = ["config.json", "pytorch_model.bin", "training_args.bin"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub(tmp_path, files, calls))
    resolve("owner/name", allow_pickle=allow_pickle)
    assert (tmp_path / "pytorch_model.bin").exists() == allow_pickle
    assert not (tmp_path / "training_args.bin").exists()


def test_named_modules_are_downloaded_with_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    files = ["model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Other/model.safetensors"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub(write_config(tmp_path), files, calls))
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    resolve("owner/name")
    assert calls == [["2_Dense/config.json", "model.safetensors"], files[1:3]]
