"""A written checkpoint appears whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoint_folders import (
    NEW,
    contents,
    leftovers,
    read_all,
    same,
    sharded,
    single,
    tensors,
)
from torch import Tensor

from isobasin.checkpoints import Checkpoint, write_checkpoint, writer as writer_module
from isobasin.errors import CheckpointError, OutputError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, ConnectionError])
@pytest.mark.parametrize("moment", ["moved", "extra", "check"])
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_leaves_everything_as_it_was(
    error: type[BaseException], moment: str, force: bool, source: Checkpoint, tmp_path: Path
) -> None:
    if force:
        single(tmp_path / "out")
    before = contents(tmp_path)

    def fail(*args: object) -> None:
        raise error

    def moved() -> Iterator[dict[str, Tensor]]:
        yield NEW
        fail()

    moves = moved() if moment == "moved" else [NEW]
    hooks = {moment: fail} if moment != "moved" else {}
    # only an operating system's error while writing is about the output
    expected = OutputError if error is ConnectionError and moment != "check" else error
    with pytest.raises(expected):
        write_checkpoint(source, tmp_path / "out", moves, force=force, **hooks)
    assert contents(tmp_path) == before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_an_existing_folder(force: bool, source: Checkpoint, tmp_path: Path) -> None:
    before = contents(single(tmp_path / "out"))
    called: list[bool] = []

    def moved() -> Iterator[dict[str, Tensor]]:
        called.append(True)
        yield NEW

    if force:
        write_checkpoint(source, tmp_path / "out", moved(), force=True)
        assert same(read_all(tmp_path / "out"), tensors() | NEW)
        assert not (tmp_path / "out" / "model.safetensors").exists()
    else:
        with pytest.raises(OutputError, match="--force"):
            write_checkpoint(source, tmp_path / "out", moved())
        assert contents(tmp_path / "out") == before
    assert called == [True] * force
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_folder_is_replaced(force: bool, source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_checkpoint(source, tmp_path / "out", [], force=force)
    assert same(read_all(tmp_path / "out"), tensors())


def test_parents_are_created(source: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(source, tmp_path / "a" / "b" / "out", [])
    assert same(read_all(tmp_path / "a" / "b" / "out"), tensors())


def test_a_linked_output_stays_a_link(source: Checkpoint, tmp_path: Path) -> None:
    single(tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    write_checkpoint(source, tmp_path / "out", [], force=True)
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk" / "out") == contents(source.folder)


def test_a_folder_that_appears_meanwhile_is_not_replaced(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        write_checkpoint(source, tmp_path / "out", [], check=lambda folder: single(tmp_path / "out"))
    assert "model.safetensors" in contents(tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_the_old_folder_comes_back_if_the_rename_fails(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(single(tmp_path / "out"))
    rename = os.rename

    def fail(old: Path, new: Path) -> None:
        if "partial" in str(old):
            raise OSError(errno.EIO, "Input/output error", str(old))
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write_checkpoint(source, tmp_path / "out", [], force=True)
    assert contents(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("place", ["source", "source/sub", "."])
@pytest.mark.parametrize("force", [False, True])
def test_the_source_is_never_the_output(place: str, force: bool, source: Checkpoint, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="input"):
        write_checkpoint(source, tmp_path / place, [], force=force)
    assert contents(tmp_path) == before


def test_no_space_is_found_before_any_work(source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = sum(len(data) for name, data in contents(source.folder).items() if name not in _UNCOUNTED)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    with pytest.raises(OutputError, match=r"no space left: the output takes \S+ [kM]B, \S+ [kM]B are free"):
        write_checkpoint(source, tmp_path / "out", iter(_unreachable, None))
    assert sorted(os.listdir(tmp_path)) == ["source"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed * 1.02))
    write_checkpoint(source, tmp_path / "out", [])


_UNCOUNTED = ("config.json", "model.safetensors.index.json")


def _unreachable() -> dict[str, Tensor]:
    raise AssertionError("work was done")


def _disk_is_full(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _quota_is_used_up(*args: object, **options: object) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize("failure", [_disk_is_full, _quota_is_used_up])
@pytest.mark.parametrize("place", ["_write", "_copy", "_write_config"])
def test_no_space_while_writing(
    failure: Callable[..., None],
    place: str,
    source: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(single(tmp_path / "out"))
    monkeypatch.setattr(writer_module, place, failure)
    with pytest.raises(OutputError, match=r"no space left: the output takes .* are free") as caught:
        write_checkpoint(source, tmp_path / "out", [NEW], force=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_in_safetensors_own_writer(source: Checkpoint, tmp_path: Path) -> None:
    def extra(folder: Path) -> None:
        (folder / "extra").symlink_to("/dev/full")
        with (folder / "extra").open("wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(OutputError, match="no space left"):
        write_checkpoint(source, tmp_path / "out", [], extra=extra)
    assert leftovers(tmp_path) == []


def test_a_source_that_shrinks_is_an_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path / "source"))
    path = tmp_path / "source" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        write_checkpoint(checkpoint, tmp_path / "out", [])
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    source = sharded(tmp_path / "source")
    moments = [("layer 0", ""), ("extra", ""), ("layer 1", "force"), ("check", "force"), ("end", "force")]
    outs = [tmp_path / str(number) / "out" for number in range(len(moments))]
    command = [sys.executable, str(Path(__file__).with_name("killed_writer.py")), str(source)]
    for out, (moment, force) in zip(outs, moments, strict=True):
        out.parent.mkdir()
        if force:
            single(out)
        command += [str(out), moment, force]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        for _ in moments:
            os.kill(int(parent.stdout.readline()), signal.SIGKILL)
    assert parent.returncode == 0
    old = contents(single(tmp_path / "old"))
    for out, (moment, force) in zip(outs, moments, strict=True):
        partial = [path for path in out.parent.iterdir() if path != out]
        if moment == "end":
            new = {f"layers.{layer}.weight": tensors()[f"layers.{layer}.weight"] + 1 for layer in range(3)}
            assert same(read_all(out), tensors() | new)
            assert partial == []
        elif force:
            assert contents(out) == old
        else:
            assert not out.exists()
        if moment not in ("check", "end"):
            assert len(partial) == 1
            assert not (partial[0] / "config.json").exists()
