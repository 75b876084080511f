"""Reading a Hugging Face checkpoint folder, a few tensors at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.checkpoints.layout import first_line
from isobasin.checkpoints.shards import PickleShard, SafetensorsShard, Shard
from isobasin.errors import CheckpointError, TensorError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says about a tensor without reading it.

    Attributes:
        shape: Its shape.
        dtype: Its stored type.
        file: Name of the shard that holds it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint folder whose headers were read and checked; open one with `Checkpoint.open`.

    Pickled shards are shown under the names that they have after conversion to safetensors.

    Attributes:
        folder: The folder.
        config: The parsed config.json.
        tensors: Every tensor, shard by shard in the order of the headers.
        files: Names of the shards, in order.
        metadata: The `__metadata__` of each shard.
        shards: The open shards by name, for the writer.
        index: The index of a sharded checkpoint, or None.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]
    metadata: dict[str, dict[str, str]]
    shards: dict[str, Shard] = field(repr=False)
    index: dict[str, Any] | None = field(repr=False, default=None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, allow_pickle: bool = False) -> Checkpoint:
        """Read the configuration and every shard's header.

        Args:
            folder: A folder with config.json and weights.
            allow_pickle: Whether weights that are only there as pickles may be loaded (plain tensors only).

        Returns:
            The checkpoint; index, headers and file lengths agree.

        Raises:
            CheckpointError: The folder, its configuration, its index or a file is missing or broken.
            TensorError: The index and the shards disagree about a tensor.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder: check the path")
        if not (folder / "config.json").exists():
            raise CheckpointError(f"{folder}: has no config.json: pass a Hugging Face checkpoint folder")
        config = _read_object(folder / "config.json")
        paths, index = _find_weights(folder, allow_pickle)
        shards = {file: _open_shard(path) for file, path in paths.items()}
        tensors = _collect(folder, shards, None if index is None else index["weight_map"])
        metadata = {file: shard.header.metadata for file, shard in shards.items()}
        return cls(folder, config, tensors, tuple(shards), metadata, shards, index)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors in their stored type, opening each shard once.

        Args:
            names: Names of tensors.

        Returns:
            The tensors, in the order of `names`, on the CPU; they own their memory.

        Raises:
            TensorError: There is no such tensor.
            CheckpointError: A file changed since the checkpoint was opened.
        """
        names = list(names)
        wanted: dict[str, list[str]] = {}
        for name in names:
            if name not in self.tensors:
                raise TensorError(f"{self.folder}: has no tensor {name!r}: is it the right model?")
            wanted.setdefault(self.tensors[name].file, []).append(name)
        tensors: dict[str, Tensor] = {}
        for file, group in wanted.items():
            tensors.update(self.shards[file].read(group))
        return {name: tensors[name] for name in names}


def check_finite(tensors: Mapping[str, Tensor], folder: str | os.PathLike[str]) -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        tensors: Tensors by name; only floating-point ones are looked at.
        folder: Where they come from, for the message.

    Raises:
        TensorError: Names the first tensor that isn't finite and counts its values.
    """
    for name, tensor in tensors.items():
        # float4 has neither NaN nor infinity
        if not tensor.is_floating_point() or tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None):
            continue
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        # NaN and infinity survive a sum, which is 20 times faster than isfinite; a sum that overflowed is
        # told apart by counting
        if values.sum().isfinite():
            continue
        count = values.numel() - int(values.isfinite().sum())
        if count:
            kind = f"{count} of {values.numel()} values are NaN or infinite"
            raise TensorError(f"{os.fspath(folder)}: tensor {name!r}: {kind}: damaged or diverged")


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}): check the file") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)}): restore the file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON {type(content).__name__}, not an object: restore it")
    return content


def _find_weights(folder: Path, allow_pickle: bool) -> tuple[dict[str, Path], dict[str, Any] | None]:
    """Path of every shard by its safetensors name, and the index; looks in transformers' order."""
    found = [name for name in (SINGLE, INDEX, _PICKLE, _PICKLE_INDEX) if os.path.lexists(folder / name)]
    if not found:
        forms = f"{SINGLE} or {INDEX}, and with --allow-pickle {_PICKLE} or {_PICKLE_INDEX}"
        raise CheckpointError(f"{folder}: no weights found: supported are {forms}")
    path = folder / found[0]
    pickled = path.name in (_PICKLE, _PICKLE_INDEX)
    if pickled and not allow_pickle:
        advice = "convert it to safetensors, or pass --allow-pickle (weights_only loading)"
        raise CheckpointError(f"{path}: pickled weights: {advice}")
    if path.name in (SINGLE, _PICKLE):
        return {SINGLE: path}, None
    index = _read_object(path)
    weight_map = _check_weight_map(path, index.get("weight_map"), ".bin" if pickled else ".safetensors")
    paths = {_safetensors_name(file): folder / file for file in sorted(set(weight_map.values()))}
    converted = {name: _safetensors_name(file) for name, file in weight_map.items()}
    return paths, {**index, "weight_map": converted}


def _check_weight_map(path: Path, weight_map: object, suffix: str) -> dict[str, str]:
    """The index's map from tensors to files, if it names plain files beside the index."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map from tensors to files: restore the index")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(suffix):
            raise CheckpointError(f"{path}: maps {name!r} to {file!r}, not to a {suffix} file: restore it")
        if any(character in file for character in "/\\\0"):
            reason = "a file outside the folder is never read"
            raise CheckpointError(f"{path}: maps {name!r} to {file!r}: {reason}: restore the index")
        if not os.path.lexists(path.parent / file):
            raise CheckpointError(f"{path}: names {file}, which is missing: download it to {path.parent}")
    return weight_map


def _safetensors_name(file: str) -> str:
    if file.endswith(".bin"):
        return file.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
    return file


def _open_shard(path: Path) -> Shard:
    return PickleShard.open(path) if path.suffix == ".bin" else SafetensorsShard.open(path)


def _collect(folder: Path, shards: Mapping[str, Shard], weight_map: Mapping[str, str] | None) -> dict[str, TensorInfo]:
    """Every tensor of the shards, which hold exactly what the index says."""
    tensors: dict[str, TensorInfo] = {}
    for file, shard in shards.items():
        for name, slot in shard.header.slots.items():
            if name in tensors:
                where = f"is in {tensors[name].file} and in {file}"
                raise TensorError(f"{folder}: tensor {name!r} {where}: remove one")
            if weight_map is not None and name not in weight_map:
                raise TensorError(f"{folder}: tensor {name!r} is in {file} but not in the index: restore it")
            tensors[name] = TensorInfo(slot.shape, slot.dtype, file)
    for name, file in (weight_map or {}).items():
        if name not in tensors or tensors[name].file != file:
            raise TensorError(f"{folder}: the index puts tensor {name!r} in {file}, which doesn't have it: restore it")
    return tensors
