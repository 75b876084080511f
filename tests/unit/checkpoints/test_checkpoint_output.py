from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from checkpoint_folders import contents, sharded, single
from safetensors import SafetensorError

from isobasin.checkpoints import check_output, write_file_atomically
from isobasin.errors import OutputError
from isobasin.reads import keeping, reading


def refusal(out: Path, inputs: list[Path] | None = None, force: bool = False) -> str:
    with pytest.raises(OutputError) as caught:
        check_output(out, inputs or [], force)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_new_and_empty_folders_are_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "out", [tmp_path / "in"])
    check_output(tmp_path / "a" / "b" / "out")
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", [tmp_path / "in"])
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_folder_that_exists_needs_force(tmp_path: Path) -> None:
    single(tmp_path / "out")
    assert "--force" in refusal(tmp_path / "out")
    check_output(tmp_path / "out", [], True)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_refused(force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    assert "is a file" in refusal(tmp_path / "out", force=force)
    assert "is a file" in refusal(tmp_path / "out" / "below", force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("out", ["model", "model/sub/deep", ".", "link", "link/sub", "model/../model", "away/../model"])
def test_inputs_are_protected(out: str, force: bool, tmp_path: Path) -> None:
    single(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert "is, holds or lies in the input" in refusal(tmp_path / out, [tmp_path / "x", tmp_path / "model"], force)


def test_what_is_read_in_a_block_is_protected_there(tmp_path: Path) -> None:
    """A model from everything, other files from being replaced: new folders may lie beside them."""
    single(tmp_path / "model")
    (tmp_path / "data" / "out").mkdir(parents=True)
    (tmp_path / "data" / "text.txt").write_text("x")
    with reading(tmp_path / "model"), keeping(tmp_path / "data" / "text.txt", tmp_path / "data", None, "not/there"):
        for out in ("model", "model/sub", ".", "data", "data/out"):
            assert "is, holds or lies in the input" in refusal(tmp_path / out, force=True)
        check_output(tmp_path / "data" / "new")
    check_output(tmp_path / "model", force=True)
    check_output(tmp_path / "data", force=True)


def test_a_linked_input_is_protected(tmp_path: Path) -> None:
    single(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert "the input" in refusal(tmp_path / "model", [tmp_path / "link"], force=True)


def test_a_file_among_the_inputs_is_protected(tmp_path: Path) -> None:
    single(tmp_path / "out")
    assert "the input" in refusal(tmp_path / "out", [tmp_path / "out" / "model.safetensors"], force=True)


def test_the_blobs_behind_a_snapshot_are_protected(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in blobs.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert "of the input" in refusal(blobs, [tmp_path / "snapshot"], force=True)
    check_output(tmp_path / "other", [tmp_path / "snapshot"])


def test_names_that_only_begin_alike_do_not_overlap(tmp_path: Path) -> None:
    single(tmp_path / "model")
    check_output(tmp_path / "model-aligned", [tmp_path / "model"])


def test_a_parent_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"no permission to write in {tmp_path}" in refusal(tmp_path / "missing" / "out")


def test_the_root_is_refused(tmp_path: Path) -> None:
    refusal(Path("/"), [tmp_path], force=True)
    refusal(Path("/"))


def test_a_file_is_written_with_its_suffix(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_text("new")

    write_file_atomically(tmp_path / "deep" / "a.safetensors", write)
    assert (tmp_path / "deep" / "a.safetensors").read_text() == "new"
    assert tmp_path / "deep" in seen[0].parents
    assert seen[0].name == "a.safetensors"
    assert sorted(os.listdir(tmp_path / "deep")) == ["a.safetensors"]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OutputError, match="--force"):
        write_file_atomically(path, lambda staging: pytest.fail("work was done"), False)
    assert path.read_text() == "old"
    write_file_atomically(path, lambda staging: staging.write_text("new") and None, True)
    assert path.read_text() == "new"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write_file_atomically(tmp_path, lambda staging: None, True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("x"), ValueError),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError(errno.EIO, "Input/output error"), OutputError),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), OutputError),
        (SafetensorError("something else"), SafetensorError),
    ],
)
def test_a_failed_file_leaves_the_old_one(error: BaseException, expected: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(expected):
        write_file_atomically(tmp_path / "a", write, True)
    assert contents(tmp_path) == {"a": b"old"}


def test_a_file_that_nobody_wrote_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        write_file_atomically(tmp_path / "a", lambda staging: None)


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.json").symlink_to("vocab.json")
    check_output(tmp_path / "out", [source])
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OutputError, match="circle"):
        write_file_atomically(tmp_path / "circle" / "file", lambda path: None)


def test_parents_that_were_made_go_again_where_nothing_was_written(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        if (tmp_path / "a").exists():
            (tmp_path / "a" / "kept").write_text("by another process")
        raise RuntimeError

    for out, left in ((tmp_path / "x" / "y" / "out", []), (tmp_path / "a" / "b" / "out", ["a"])):
        with pytest.raises((RuntimeError, OutputError)):
            write_file_atomically(out, fail)
        assert os.listdir(tmp_path) == left
    assert os.listdir(tmp_path / "a") == ["kept"]
    write_file_atomically(tmp_path / "x" / "y" / "out", lambda path: path.write_text("whole"))
    assert (tmp_path / "x" / "y" / "out").read_text() == "whole"
