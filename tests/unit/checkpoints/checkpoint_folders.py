"""Tiny checkpoint folders for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from isobasin.checkpoints import Checkpoint

CONFIG = {"model_type": "tiny", "dtype": "float32", "hidden_size": 4}
NEW = {"layers.0.weight": torch.full((6, 4), 7.0), "layers.2.bias": torch.full((5,), -2.0, dtype=torch.bfloat16)}


def tensors(layers: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Two tensors per layer, of several types and shapes."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {"scale": torch.tensor(1.5), "nothing": torch.zeros(0, 3)}
    for layer in range(layers):
        state[f"layers.{layer}.weight"] = torch.randn(6, 4, generator=generator)
        state[f"layers.{layer}.bias"] = torch.randn(5, generator=generator).to(torch.bfloat16)
        state[f"layers.{layer}.steps"] = torch.arange(3) + layer
    return state


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def single(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint in one file."""
    save_file(tensors() if state is None else state, write_config(folder) / "model.safetensors", {"format": "pt"})
    return folder


def shard_name(number: int, count: int = 2) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def write_index(folder: Path, weight_map: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    index = {"metadata": {"total_parameters": 1, "total_size": 2}, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(index))


def split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of two shards; the first layer is spread over both."""
    first = {name: value for at, (name, value) in enumerate(state.items()) if at < len(state) // 2}
    return first, {name: value for name, value in state.items() if name not in first}


def sharded(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint in two files with an index."""
    write_config(folder)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(split(tensors() if state is None else state), start=1):
        save_file(part, folder / shard_name(number), {"format": "pt", "part": str(number)})
        weight_map |= dict.fromkeys(part, shard_name(number))
    write_index(folder, weight_map)
    return folder


def pickled(folder: Path, state: object = None) -> Path:
    """A checkpoint in one pickle."""
    torch.save(tensors() if state is None else state, write_config(folder) / "pytorch_model.bin")
    return folder


def pickled_shards(folder: Path) -> Path:
    """A checkpoint in two pickles with an index."""
    write_config(folder)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(split(tensors()), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map, "pytorch_model.bin.index.json")
    return folder


def linked(real: Path, folder: Path) -> Path:
    """A folder of links to the files of another one."""
    folder.mkdir(parents=True)
    for path in real.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether names, types, shapes and every value agree."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_sources(folder: Path) -> dict[str, Path]:
    """One checkpoint of each form."""
    return {
        "single": single(folder / "single"),
        "sharded": sharded(folder / "sharded"),
        "pickled": pickled(folder / "pickled"),
        "pickled_shards": pickled_shards(folder / "pickled_shards"),
    }


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def read_all(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint.read(checkpoint.tensors)
