from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoint_folders import sharded, single, write_config
from huggingface_hub import constants, errors
from huggingface_hub.utils import (
    SafetensorsFileMetadata,
    SafetensorsRepoMetadata,
    TensorInfo as HubTensor,
    filter_repo_objects,
)

from isobasin.canonical import open_checkpoint
from isobasin.checkpoints import Checkpoint, resolve
from isobasin.downloads import LISTENER
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
    "source", ["./missing", "/missing/model", "../model", "a/b/c", "", "a--b", "x" * 400, "mo\0del", "gpt2@", "@main"]
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
    ("kind", "words", "advice"),
    [
        (errors.GatedRepoError, "gated", "hf auth login"),
        (errors.RepositoryNotFoundError, "no such model", "hf auth login"),
        (errors.RevisionNotFoundError, "no such revision", "after the @"),
    ],
)
def test_a_gated_or_unknown_model(
    kind: type[Exception], words: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> str:
        raise kind.__new__(kind)  # their constructors want an HTTP response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal("owner/name")
    assert words in message
    assert advice in message


def hub(folder: Path, files: list[str], calls: list[list[str]]):
    """A hub with one model."""

    def download(repo_id: str, allow_patterns: list[str], ignore_patterns: list[str], **_: object) -> str:
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


class Hub:
    """A hub with one model, of which it notes what was asked."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.model, self.cache = model, cache
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, repo_id: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str], tqdm_class: Any
    ) -> str:
        names = [path.name for path in self.model.iterdir()]
        kept = sorted(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        self.cache.mkdir(exist_ok=True)
        if tqdm_class is not None:
            with tqdm_class(total=0, unit="B") as bar:
                bar.total = 3_000_000
                bar.refresh()
                bar.update(3_000_000)
                bar.refresh()
        for name in kept:
            self.asked.append((name, revision))
            shutil.copyfile(self.model / name, self.cache / name)
        return str(self.cache)

    def get_safetensors_metadata(self, repo_id: str, revision: str | None) -> SafetensorsRepoMetadata:
        files: dict[str, SafetensorsFileMetadata] = {}
        for path in self.model.glob("*.safetensors"):
            self.asked.append((f"header of {path.name}", revision))
            raw = path.read_bytes()
            listing = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            metadata = listing.pop("__metadata__", {})
            tensors = {k: HubTensor(v["dtype"], v["shape"], tuple(v["data_offsets"])) for k, v in listing.items()}
            files[path.name] = SafetensorsFileMetadata(metadata, tensors)
        if not files:
            raise errors.NotASafetensorsRepoError("none")
        return SafetensorsRepoMetadata(None, len(files) > 1, {}, files)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Hub]:
    def put(model: Path) -> Hub:
        found = Hub(model, tmp_path / "fetched")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", found.get_safetensors_metadata)
        return found

    return put


@pytest.mark.parametrize(("source", "revision"), [("owner/name", None), ("owner/name@v1.0", "v1.0")])
def test_a_revision_is_named_after_the_id(
    source: str, revision: str | None, fake: Callable[[Path], Hub], tmp_path: Path
) -> None:
    hub = fake(single(tmp_path / "model"))
    assert resolve(source) == hub.cache
    assert {asked for _, asked in hub.asked} == {revision}


@pytest.mark.parametrize("make", [single, sharded])
def test_only_headers_are_fetched_until_a_value_is_read(
    make: Callable[[Path], Path], fake: Callable[[Path], Hub], tmp_path: Path
) -> None:
    model = make(tmp_path / "model")
    local, hub = Checkpoint.open(model), fake(model)
    with open_checkpoint("owner/name@v1", headers=True) as checkpoint:
        assert all(name.endswith(".json") or name.startswith("header of ") for name, _ in hub.asked)
        assert (checkpoint.tensors, checkpoint.config) == (local.tensors, local.config)
        assert {file: shard.header.metadata for file, shard in checkpoint.shards.items()} == local.metadata
        checkpoint.check_unchanged()
        values = checkpoint.read(local.tensors)
        assert all(torch.equal(values[name], tensor) for name, tensor in local.read(local.tensors).items())
    assert {revision for _, revision in hub.asked} == {"v1"}
    hub.asked.clear()
    with open_checkpoint("owner/name@v1", headers=True) as checkpoint:
        assert checkpoint.folder == hub.cache  # that is here by now
    assert not [name for name, _ in hub.asked if name.startswith("header")]


def test_what_has_no_safetensors_is_fetched_as_ever(fake: Callable[[Path], Hub], tmp_path: Path) -> None:
    model = write_config(tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    fake(model)
    with open_checkpoint("owner/name", allow_pickle=True, headers=True) as checkpoint:
        assert checkpoint.read(["x"])["x"].tolist() == [1, 1]


def test_a_download_is_told_in_megabytes(
    fake: Callable[[Path], Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(single(tmp_path / "model"))
    told: list[tuple[str, int, int]] = []
    token = LISTENER.set(lambda *what: told.append(what))
    try:
        resolve("owner/name@v1")
    finally:
        LISTENER.reset(token)
    assert list(dict.fromkeys(told)) == [("downloading owner/name@v1, MB", n, 3) for n in (0, 3)]
    assert capsys.readouterr() == ("", "")
