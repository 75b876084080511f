"""What is read is one version of the folder's own regular files."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_folders import (
    contents,
    leftovers,
    linked,
    make_sources,
    pickled,
    same,
    shard_name,
    sharded,
    single,
    tensors,
    write_config,
)
from torch import Tensor

import isobasin.checkpoints.files as files_module
from isobasin.checkpoints import Checkpoint, regular_file, write_checkpoint
from isobasin.errors import CheckpointError, DataError, IsobasinWarning


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder, allow_pickle=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.rename(path)


def _rewrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)  # the system's clock for files ticks more slowly than ours
    with path.open("r+b") as file:
        file.write(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


CHANGES = [_replace, _rewrite, _cut, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["single", "sharded", "pickled", "pickled_shards"])
def test_weights_that_change_are_not_read(form: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_sources(tmp_path)[form], allow_pickle=True)
    shard = checkpoint.shards[checkpoint.files[-1]]
    names = list(shard.header.slots)
    checkpoint.read(names)
    change(shard.file.path)
    for read in (lambda: checkpoint.read(names[:1]), lambda: list(shard.pieces(names))):
        with pytest.raises(CheckpointError, match=f"{shard.file.path.name}: changed while it was being read"):
            read()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", shard_name(1), shard_name(2), "tokenizer.json"]
)
def test_nothing_is_written_of_files_that_change(name: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = sharded(tmp_path / "source")
    (folder / "tokenizer.json").write_text("{}")
    checkpoint = Checkpoint.open(folder)

    def moved() -> Iterator[dict[str, Tensor]]:
        yield {"layers.0.weight": torch.zeros(6, 4)}
        change(folder / name)

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        write_checkpoint(checkpoint, tmp_path / "out", moved())
    assert os.listdir(tmp_path) == ["source"]


def test_a_change_during_the_check_goes_before_what_the_check_says(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path / "source"))

    def check(folder: Path) -> None:
        _replace(tmp_path / "source" / "model.safetensors")
        raise ValueError("outputs differ")

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        write_checkpoint(checkpoint, tmp_path / "out", [], check=check)


OTHER_KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}
FOUND = {"folder": "is a folder, not a file"}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    OTHER_KINDS[kind](tmp_path / "x")
    with pytest.raises(DataError, match=f"x: {FOUND.get(kind, 'is a pipe or a device, not a file')}"):
        regular_file(tmp_path / "x", DataError)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", shard_name(1)]
)
def test_a_checkpoint_of_other_kinds_of_files_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a") if name in (shard_name(1), "model.safetensors.index.json") else tmp_path / "a"
    if not folder.exists():
        write_config(folder)
    (folder / name).unlink(missing_ok=True)
    OTHER_KINDS[kind](folder / name)
    assert f"{name}: {FOUND.get(kind, 'is a pipe or a device, not a file')}" in refusal(folder)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_pipe_beside_the_weights_is_refused(kind: str, tmp_path: Path) -> None:
    # transformers would wait for somebody to write into it.
    OTHER_KINDS[kind](single(tmp_path) / "generation_config.json")
    assert "generation_config.json: is a pipe or a device, not a file" in refusal(tmp_path)


def test_a_pipe_in_a_sub_folder_is_left_out(tmp_path: Path) -> None:
    folder = single(tmp_path / "source")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "sub" / "x.json")
    with pytest.warns(IsobasinWarning, match=r"without sub/x.json of .*no files"):
        write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [])
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_json_is_bounded(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "generation_config.json").touch()
    os.truncate(folder / "generation_config.json", 2**40)
    assert "generation_config.json: 1099512 MB of JSON" in refusal(folder)
    (folder / "generation_config.json").unlink()
    os.truncate(folder / "config.json", 2 * 2**30)
    assert "config.json: 2147 MB of JSON, more than the 67 MB that are read" in refusal(folder)
    (folder / "config.json").write_text('{"a": ' * 100_000)
    assert "config.json: not valid JSON" in refusal(folder)


@pytest.mark.parametrize("length", [10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_of_absurd_length(length: int, tmp_path: Path) -> None:
    (write_config(tmp_path) / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert "model.safetensors: truncated or not a safetensors file" in refusal(tmp_path)


def test_a_tensor_that_comes_twice_in_a_header(tmp_path: Path) -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    (write_config(tmp_path) / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    assert "'a' comes twice" in refusal(tmp_path)


def test_a_pickled_tensor_larger_than_its_file(tmp_path: Path) -> None:
    pickled(tmp_path, {"a": torch.zeros(1).expand(2**50)})
    assert "'a' repeats fewer values than its shape has" in refusal(tmp_path)


def test_no_permission_is_not_answered_with_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the system's answer is made up.
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    folder = single(tmp_path)
    monkeypatch.setattr(files_module, "_open", refuse)
    assert "config.json: no permission to read it" in refusal(folder)
    monkeypatch.setattr(os, "listdir", lambda path: refuse(path, 0))
    assert f"{folder}: no permission to read it" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", shard_name(2)])
def test_links_out_of_the_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    folder, outside = sharded(tmp_path / "model"), tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert f"{name}: a link to {outside}, outside the checkpoint" in refusal(folder)
    outside.rename(folder / "inside")
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    assert same(Checkpoint.open(folder).read(tensors()), tensors())


def test_the_hub_cache_is_read_through_its_own_blobs_only(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "models--a--b" / "blobs")
    snapshot = linked(blobs, tmp_path / "models--a--b" / "snapshots" / "0123")
    assert same(Checkpoint.open(snapshot).read(tensors()), tensors())
    stranger = linked(blobs, tmp_path / "models--c--d" / "snapshots" / "0123")
    assert "outside the checkpoint" in refusal(stranger)
    (tmp_path / "models--c--d" / "blobs").symlink_to(blobs)
    assert "outside the checkpoint" in refusal(stranger)


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    single(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    write_checkpoint(Checkpoint.open(tmp_path / "link"), tmp_path / "out", [])
    assert contents(tmp_path / "out") == contents(tmp_path / "real")


def test_companions_that_lead_out_are_left_out_with_a_word(tmp_path: Path) -> None:
    folder = single(tmp_path / "source")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.json").write_text("secret")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret" / "key.json")
    (folder / "up").symlink_to(tmp_path / "secret")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").symlink_to("vocab.json")
    with pytest.warns(IsobasinWarning, match=r"without tokenizer.json, up of .*links out of the folder"):
        write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [])
    assert contents(tmp_path / "out").keys() == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert leftovers(tmp_path) == []


def test_copies_keep_their_modes_under_the_umask(tmp_path: Path) -> None:
    folder = single(tmp_path / "source")
    modes = {"config.json": 0o600, "model.safetensors": 0o640, "run.sh": 0o777, "sub/README.md": 0o444}
    (folder / "sub").mkdir(mode=0o700)
    for name, mode in modes.items():
        (folder / name).touch()
        (folder / name).chmod(mode)
    folder.chmod(0o750)
    before = os.umask(0o026)
    try:
        write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [], extra=lambda out: (out / "new").touch())
    finally:
        os.umask(before)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    wanted = {"config.json": 0o600, "model.safetensors": 0o640, "run.sh": 0o751, "sub/README.md": 0o640}
    assert found == {f"out/{name}": mode for name, mode in wanted.items()} | {"out/new": 0o640, "out/sub": 0o700}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_a_configuration_may_name_the_weight_file(tmp_path: Path) -> None:
    folder = single(tmp_path / "a", {"decoy": torch.zeros(1)})
    other = single(tmp_path / "b") / "model.safetensors"
    other.rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.warns(IsobasinWarning, match="without model.safetensors of"):
        write_checkpoint(Checkpoint.open(folder), tmp_path / "out", [])
    assert sorted(contents(tmp_path / "out")) == ["config.json", "other.safetensors"]
    assert same(Checkpoint.open(tmp_path / "out").read(tensors()), tensors())


@pytest.mark.parametrize("name", [3, [], "../x.safetensors", "adapter_model.bin", "x.gguf"])
def test_a_configuration_may_not_name_anything_else(name: object, tmp_path: Path) -> None:
    (single(tmp_path) / "config.json").write_text(json.dumps({"transformers_weights": name}))
    assert f"transformers_weights is {name!r}" in refusal(tmp_path)
