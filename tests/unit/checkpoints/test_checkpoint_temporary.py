"""Work in progress is removed in the end: by its process, or by the next one if that was killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from checkpoint_folders import contents, leftovers, single
from safetensors import SafetensorError

import isobasin.checkpoints.temporary as temporary_module
from isobasin.checkpoints import temporary_folder, write_file_atomically
from isobasin.checkpoints.output import disk_errors, install
from isobasin.checkpoints.temporary import calling, own_folder
from isobasin.errors import OutputError
from isobasin.space import check_space

# A process that makes a folder, says where, and waits to be killed or told to end.
CHILD = """
import runpy, sys
from pathlib import Path

own_folder = runpy.run_path(sys.argv[3])["own_folder"]  # without the libraries that the package imports
with own_folder(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "model").write_text("of the child")
    print(folder, flush=True)
    sys.stdin.read()
"""


def child(parent: Path, role: str = "partial") -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(parent), role, str(temporary_module.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], number: int | None = None) -> None:
    with process:
        if number is not None:
            process.send_signal(number)
            process.wait()


@pytest.fixture(autouse=True)
def fresh_start() -> None:
    """Each test is the first to look for what was left."""
    temporary_module._remove_orphans.cache_clear()


def test_a_folder_is_private_and_removed_in_the_end(tmp_path: Path) -> None:
    def work() -> None:
        with own_folder(tmp_path, "partial") as folder:
            assert list(folder.iterdir()) == []
            (folder / "x").mkdir()
            assert len(leftovers(tmp_path)) == 1
            assert next(tmp_path.iterdir()).stat().st_mode & 0o777 == 0o700
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_only_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    alive, kept = child(tmp_path)
    dead, left = child(tmp_path)
    end(dead, signal.SIGKILL)
    others = [".isobasin-partial-0123456789abcdef", ".out.partial-01234567", ".isobasin-temporary-0123456789abcdef.old"]
    for name in others:  # without an owner, or of another name
        (tmp_path / name).mkdir()
    foreign = tmp_path / ".isobasin-partial-00000000000000ff"
    foreign.mkdir()
    (foreign / "owner").write_text("another machine")
    (tmp_path / ".isobasin-replaced-0123456789abcdef").symlink_to(tmp_path / others[0])
    before = set(os.listdir(tmp_path))
    write_file_atomically(tmp_path / "out", lambda path: path.write_text("new") and None)
    assert (kept / "model").read_text() == "of the child"
    assert set(os.listdir(tmp_path)) == before - {left.parent.name} | {"out"}
    end(alive)
    assert kept.parent.name not in os.listdir(tmp_path)


def test_what_was_killed_before_it_had_a_name_is_removed_hours_later(tmp_path: Path) -> None:
    """A process that is alive is past that in a moment."""
    old, young = (tmp_path / f".isobasin-new-{letter * 16}" for letter in "0a")
    for place in (old, young, tmp_path / ".isobasin-new-x"):
        place.mkdir()
        (place / "content").mkdir()
    long_ago = time.time() - 3 * 3600
    os.utime(old, (long_ago, long_ago))
    os.utime(tmp_path / ".isobasin-new-x", (long_ago, long_ago))
    write_file_atomically(tmp_path / "out", lambda path: path.write_text("new") and None)
    assert sorted(os.listdir(tmp_path)) == [young.name, ".isobasin-new-x", "out"]


def test_the_temporary_directory_is_cleaned_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_module.tempfile, "tempdir", str(tmp_path))
    process, left = child(tmp_path, "temporary")
    end(process, signal.SIGKILL)
    assert (left / "model").exists()
    with temporary_folder() as folder:
        assert os.listdir(tmp_path) == [folder.parent.name]
        assert folder.parent != left.parent
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_what_was_to_be_replaced_comes_back_after_a_kill(replaced: bool, tmp_path: Path) -> None:
    process, left = child(tmp_path, "replaced")
    end(process, signal.SIGKILL)
    if replaced:
        (tmp_path / "model").write_text("new")
    with own_folder(tmp_path, "partial"):
        assert not left.parent.exists()
    assert (tmp_path / "model").read_text() == ("new" if replaced else "of the child")
    assert leftovers(tmp_path) == []


def test_install_replaces_a_folder(tmp_path: Path) -> None:
    single(tmp_path / "out")
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "x").write_text("new")
    install(tmp_path / "staging", tmp_path / "out", force=True)
    assert contents(tmp_path) == {"out/x": b"new"}
    assert leftovers(tmp_path) == []


def test_a_name_of_the_longest_kind(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_file_atomically(path, lambda staging: staging.write_text("new") and None)
    assert path.read_text() == "new"


def test_errors_name_what_a_folder_stands_for(tmp_path: Path):
    """Also those of other layers, and whatever follows the folder's name in them."""
    with pytest.raises(OutputError, match=r"^the model/part: isn't there$") as caught, calling(tmp_path, "the model"):
        raise OutputError(f"{tmp_path}/part: isn't there")
    assert str(tmp_path) in str(caught.value.__cause__)
    with pytest.raises(OutputError, match=r"^elsewhere$"), calling(tmp_path, "the model"):
        raise OutputError("elsewhere")


@pytest.mark.parametrize("after", ["mkdir", "write_text", "rename"])
def test_a_signal_leaves_nothing_wherever_it_strikes(after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = getattr(Path, after)

    def struck(path: Path, *arguments: object, **options: object) -> None:
        real(path, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, after, struck)
    with pytest.raises(KeyboardInterrupt), own_folder(tmp_path, "partial"):
        pytest.fail("nothing was interrupted")
    assert os.listdir(tmp_path) == []


FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)"),
        shutil.Error([("a", "b", f"[Errno 28] {FULL}: 'b'")]),
    ],
)
def test_no_space_for_temporary_files_is_said_of_their_place(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever writes there, and however it says so; not of the result, which lies elsewhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = f"^{tmp_path}: no space left for temporary files: .* are free: make room, or name another folder in TMPDIR$"
    with pytest.raises(OutputError, match=said), temporary_folder():
        raise error
    with pytest.raises(OutputError, match=said), temporary_folder() as folder, disk_errors(folder / "result"):
        raise error
    with pytest.raises(OutputError, match=said), temporary_folder() as folder:
        check_space(folder / "result", 2**70)
    monkeypatch.setattr(Path, "mkdir", lambda path, **options: _raise(error))
    with pytest.raises(OutputError, match=said), temporary_folder():
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_system_refuses_to_safetensors_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It may be larger than a process is allowed to write, for one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    error = SafetensorError("Error while serializing: I/O error: File too large (os error 27)")
    with pytest.raises(OutputError, match=rf"^{tmp_path}: can't be written \(File too large\)"), temporary_folder():
        raise error
    with pytest.raises(SafetensorError), temporary_folder():
        raise SafetensorError("Error while deserializing header")


def _raise(error: Exception) -> None:
    raise error
