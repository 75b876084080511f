"""Weights are asked for as soon as they are named: all of them, once, and no more than memory has room for."""

import os
from pathlib import Path

import pytest

from isobasin import ahead

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice about files")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """What the system is asked for, `(start, length)` by file."""
    found: dict[str, list[tuple[int, int]]] = {}

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        found.setdefault(os.readlink(f"/proc/self/fd/{file}").rpartition("/")[2], []).append((start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(ahead, "_PIECE", 4)
    monkeypatch.setattr(ahead, "Thread", _AtOnce)
    return found


class _AtOnce:
    """A thread whose work is done when it is started."""

    def __init__(self, *, target, args, **_):
        self.start = lambda: target(*args)


def test_all_weights_are_asked_for_in_pieces(tmp_path: Path, asked: dict[str, list[tuple[int, int]]]):
    (tmp_path / "a.safetensors").write_bytes(bytes(9))
    (tmp_path / "b.safetensors").write_bytes(bytes(3))
    (tmp_path / "c.txt").write_bytes(bytes(3))
    ahead.read_ahead(tmp_path)
    assert asked == {"a.safetensors": [(0, 4), (4, 4), (8, 1)], "b.safetensors": [(0, 3)]}


def test_no_more_than_a_share_of_memory(
    tmp_path: Path, asked: dict[str, list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(5))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 7}.__getitem__)
    ahead.read_ahead(tmp_path)
    assert asked == {"a.safetensors": [(0, 4), (4, 1)], "b.safetensors": [(0, 2)]}


@pytest.mark.parametrize("name", ["org/model@v1", "\0", "model.safetensors", ""])
def test_what_is_no_folder_is_left_alone(
    tmp_path: Path, asked: dict[str, list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / "model.safetensors").write_bytes(bytes(3))
    monkeypatch.chdir(tmp_path)
    ahead.read_ahead(name) if name else ahead.read_ahead()
    assert asked == {}


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path, asked: dict[str, list[tuple[int, int]]]):
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "gone")
    ahead.read_ahead(tmp_path)
    assert asked == {}


def test_what_is_not_the_folders_own_is_not_touched(tmp_path: Path, asked: dict[str, list[tuple[int, int]]]):
    """A link that leads elsewhere is refused later, and at a pipe one waits; the hub's snapshots link to blobs."""
    folder, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for place in (tmp_path / "elsewhere", blobs / "own"):
        place.write_bytes(bytes(3))
        (folder / f"{place.name}.safetensors").symlink_to(place)
    os.mkfifo(folder / "pipe.safetensors")
    ahead.read_ahead(folder)
    assert asked == {"own": [(0, 3)]}
