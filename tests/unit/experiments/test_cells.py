"""Cells, their keys and their folders."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from isobasin.errors import OutputError
from isobasin.experiments.cells import RECORD, Cell, Store
from isobasin.space import full_disk


def put(store: Store, cell: Cell, **extra: Any) -> None:
    """Do a cell."""
    with store.writing(cell) as folder:
        assert folder is not None
        if cell.kind in ("pretrain", "finetune"):
            (folder / "model").mkdir(exist_ok=True)
            (folder / "model" / "config.json").write_text("{}")
        (folder / RECORD).write_text(json.dumps({"key": cell.key, **extra}))


def base(seed: int = 0) -> Cell:
    return Cell("pretrain", {"seed": seed, "rate": 1e-3})


def tuned(seed: int, need: Cell | None = None) -> Cell:
    return Cell("finetune", {"seed": seed}, (need or base(),))


def test_the_key_is_that_of_kind_specification_and_needs():
    cell = tuned(1)
    inner = hashlib.sha256(b'[1,"pretrain",{"rate":0.001,"seed":0},[]]').hexdigest()
    content = f'[1,"finetune",{{"seed":1}},["{inner}"]]'
    assert cell.key == hashlib.sha256(content.encode()).hexdigest()
    assert cell.name == f"finetune-{cell.key[:16]}"


def test_other_cells_have_other_keys():
    cells = [
        base(),
        base(1),
        tuned(1),
        tuned(2),
        tuned(1, base(1)),
        Cell("pair", {}, (tuned(1), tuned(2))),
        Cell("pair", {}, (tuned(2), tuned(1))),
        Cell("stage-2", {}, (tuned(1), tuned(2))),
    ]
    assert len({cell.key for cell in cells}) == len(cells)
    assert Cell("pretrain", {"rate": 1e-3, "seed": 0}, label="another").key == base().key


def test_the_key_is_the_same_in_another_process():
    code = "from isobasin.experiments.cells import Cell; print(Cell('pretrain', {'seed': 0, 'rate': 1e-3}).key)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == base().key


@pytest.mark.parametrize("who", ["the system", "a writer"])
def test_a_full_disk_names_the_folder_that_was_asked_for(tmp_path: Path, who: str):
    def write() -> None:
        with Store(tmp_path).writing(base()) as folder:
            assert folder is not None
            with nullcontext() if who == "the system" else full_disk(folder / "model"):
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="no space left") as caught:
        write()
    assert str(caught.value).startswith(str(tmp_path))
    assert ".partial" not in str(caught.value)


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path):
    store, cell = Store(tmp_path), base()
    with store.writing(cell) as folder:
        assert folder is not None
        assert folder.name.startswith(".")
        assert not store.path(cell).exists()
        (folder / RECORD).write_text(json.dumps({"key": cell.key}))
        assert store.record(cell) is None
    assert store.record(cell) == {"key": cell.key}
    assert [path.name for path in store.folder.iterdir()] == [cell.name]
    assert [path.name for path in store.path(cell).iterdir()] == [RECORD]


def test_an_interrupted_attempt_is_continued_if_it_began_from_the_same(tmp_path: Path):
    store, need = Store(tmp_path), base()
    cell = tuned(1)
    put(store, need)

    def attempt(left: list[str]) -> None:
        with store.writing(cell) as folder:
            assert folder is not None
            left += [path.name for path in folder.iterdir() if path.name == "state"]
            (folder / "state").touch()
            raise KeyboardInterrupt

    def interrupted() -> list[str]:
        left: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            attempt(left)
        return left

    assert interrupted() == []
    assert interrupted() == ["state"]
    assert store.record(cell) is None
    put(store, base(7))
    assert interrupted() == ["state"]
    # What it needs was done again, with another result.
    store.drop_model(need)
    put(store, need, result=2)
    assert interrupted() == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other"}'])
def test_a_record_that_is_none_does_not_count(content: str, tmp_path: Path):
    store, cell = Store(tmp_path), base()
    put(store, cell)
    (store.path(cell) / RECORD).write_text(content)
    assert store.record(cell) is None
    put(store, cell, again=True)
    assert store.record(cell) == {"key": cell.key, "again": True}


def test_a_trained_cell_is_complete_with_its_model_only(tmp_path: Path):
    store, cell = Store(tmp_path), base()
    put(store, cell)
    assert store.complete(cell)
    store.drop_model(cell)
    assert store.record(cell) is not None
    assert not store.complete(cell)
    put(store, cell)
    assert store.complete(cell)


def test_two_never_write_one_cell(tmp_path: Path):
    store, cell = Store(tmp_path), base()
    order: list[str] = []
    begun = threading.Event()

    def first() -> None:
        with store.writing(cell) as folder:
            assert folder is not None
            begun.set()
            time.sleep(0.3)
            (folder / "model").mkdir()
            (folder / "model" / "config.json").touch()
            (folder / RECORD).write_text(json.dumps({"key": cell.key}))
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    with Store(tmp_path).writing(cell) as folder:
        assert folder is None
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_killed_process_leaves_the_cell_to_others(tmp_path: Path):
    code = """
import os, signal, sys
from pathlib import Path
from isobasin.experiments.cells import Cell, Store
with Store(Path(sys.argv[1])).writing(Cell("pair", {})) as folder:
    (folder / "records.jsonl").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert found.returncode == -9
    store, cell = Store(tmp_path), Cell("pair", {})
    assert store.record(cell) is None
    with store.writing(cell) as folder:
        assert folder is not None
        assert (folder / "records.jsonl").exists()
        (folder / RECORD).write_text(json.dumps({"key": cell.key}))
    assert store.record(cell) is not None
