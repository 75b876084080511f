"""Blocks of two models matched as tasks: whatever runs them, the files are the same to the byte."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chores
import pytest
import torch
from safetensors.torch import load_file, save_file

import isobasin
from isobasin.architectures.examples import tiny, variant
from isobasin.errors import CheckpointError, IsobasinError, TensorError
from isobasin.execution.local import Here, Processes
from isobasin.execution.tasks import Engine, Failure, Function, Listener, Task
from isobasin.model import batches
from isobasin.verbs import blocks


@dataclass
class Mailed:
    """Does the last task first, and everything as if another process did it."""

    count: int = 0

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        self.count = len(tasks)
        Here().run(tasks[::-1], partial(mailed, function=function), listener)


def mailed(payload: Any, progress: Any, *, function: Function) -> Any:
    there, what = pickle.loads(pickle.dumps((function, payload)))
    with chdir("/"):
        return pickle.loads(pickle.dumps(there(what, progress)))


@dataclass
class Sabotaged:
    """The first task that begins loses its process."""

    engine: Engine
    mark: Path

    def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
        self.engine.run(tasks, partial(chores.killed_once, function=function, mark=self.mark), listener)


class Weighing:
    """Moments as data could have them."""

    def moments(self, model: Any, names: Any) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        rows = {name: torch.randn(99, 33, generator=generator, dtype=torch.float64) for name in sorted(names)}
        return {name: x.mT @ x for name, x in rows.items()}

    def starts(self, *_: Any) -> Any: ...

    def scores(self, *_: Any) -> Any: ...


@pytest.fixture(autouse=True)
def one_layer_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers would all be one task."""
    monkeypatch.setattr(blocks, "batches", partial(batches, limit=1))


def pair(folder: Path, model: str = "llama", dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    a, b = (variant(model).save(folder / name, seed, dtype=dtype) for seed, name in enumerate("ab"))
    return a, b


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("model", "scope", "dtype"),
    [
        ("gpt2", "attention", torch.float64),
        ("gpt2", "block", torch.float32),
        ("llama", "block", torch.bfloat16),
        ("qwen3", "block", torch.float32),
        ("mixtral", "block", torch.bfloat16),
        ("deepseek_v3", "block", torch.float32),
        ("albert", "block", torch.float32),
        ("t5", "attention", torch.float32),
        ("swin", "attention", torch.float32),
        ("clip", "block", torch.float16),
    ],
)
def test_tasks_write_the_same_bytes(model: str, scope: str, dtype: torch.dtype, tmp_path: Path):
    a, b = pair(tmp_path, model, dtype)
    engine = Mailed()
    isobasin.align(a, b, tmp_path / "here", scope=scope, verify=False)
    isobasin.align(a, b, tmp_path / "there", scope=scope, verify=False, engine=engine)
    assert engine.count > 3
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_shards_in_memory_and_weighed_by_data(tmp_path: Path):
    a, b = (tiny("llama").build(seed, dtype=torch.bfloat16) for seed in range(2))
    for name, model in (("a", a), ("b", b)):
        model.save_pretrained(tmp_path / name, max_shard_size="8KB")
    how = {"scope": "block", "objective": "activations", "calibration": Weighing()}
    here = isobasin.align(tmp_path / "a", tmp_path / "b", tmp_path / "here", **how)
    there = isobasin.align(tmp_path / "a", tmp_path / "b", tmp_path / "there", **how, engine=Mailed())
    assert len(list((tmp_path / "there").glob("model-*.safetensors"))) > 3
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert there.to_json() == here.to_json()
    assert there.verified is not None
    # Models in memory, and nothing written: the blocks are verified by the tasks.
    here, there = (isobasin.align(a, b, **how, engine=engine) for engine in (None, Mailed()))
    assert there.to_json() == here.to_json()
    assert there.verified == here.verified is not None


def test_pickled_weights_under_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in pair(tmp_path):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    for name, engine in (("here", None), ("there", Mailed())):
        isobasin.align("a", "b", name, verify=False, allow_pickle=True, engine=engine)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_refusal_of_a_task_is_what_it_would_be_here(tmp_path: Path):
    a, b = pair(tmp_path)
    tensors = load_file(b / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(tensors, b / "model.safetensors", {"format": "pt"})
    said = []
    for engine in (None, Mailed()):
        with pytest.raises(TensorError) as caught:
            isobasin.align(a, b, tmp_path / "out", engine=engine)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("accident", [lambda file: os.utime(file, (1, 1)), lambda file: file.unlink()])
def test_a_machine_that_sees_other_files_is_refused(accident: Any, tmp_path: Path):
    a, b = pair(tmp_path)

    class Elsewhere(Mailed):
        def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
            accident(b / "model.safetensors")
            super().run(tasks, function, listener)

    with pytest.raises(CheckpointError, match="sees other files there: use a folder that all machines share"):
        isobasin.align(a, b, tmp_path / "out", engine=Elsewhere())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("failure", "error"),
    [(Failure("its process died 2 times"), IsobasinError), (Failure("unexpected", trace="where"), RuntimeError)],
)
def test_a_task_that_fails_ends_it(failure: Failure, error: type[Exception], tmp_path: Path):
    class Failing:
        def run(self, tasks: Sequence[Task], function: Function, listener: Listener) -> None:
            listener.failed(tasks[3], failure)

    a, b = pair(tmp_path)
    with pytest.raises(error, match=rf"part 2 of 2, from model\.layers\.1\.self_attn: {failure.message}"):
        isobasin.align(a, b, engine=Failing())


def test_whole_models_are_no_tasks(tmp_path: Path):
    with pytest.raises(IsobasinError, match="--scope model matches every block by what the others became"):
        isobasin.align(*pair(tmp_path), scope="model", engine=Mailed())


@pytest.mark.long
def test_a_killed_process_changes_nothing(tmp_path: Path):
    a, b = pair(tmp_path)
    isobasin.align(a, b, tmp_path / "here", scope="block", verify=False)
    engine = Sabotaged(Processes(2, threads=1), tmp_path / "killed")
    isobasin.align(a, b, tmp_path / "there", scope="block", verify=False, engine=engine)
    assert (tmp_path / "killed").exists()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
