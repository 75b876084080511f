"""Reading a Hugging Face checkpoint folder, a few tensors at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.checkpoints.files import WatchedFile, bounded, entries, inside, read_object, regular_file
from isobasin.checkpoints.kinds import other_kind, refuse_adapter
from isobasin.checkpoints.shards import PickleShard, SafetensorsShard, Shard
from isobasin.checkpoints.weights import Index, find_weights
from isobasin.errors import CheckpointError, TensorError
from isobasin.memory import give_memory_back

CONFIG = "config.json"
_GENERATION = "generation_config.json"
"""What transformers reads with every model that generates."""


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
        config_file: Where it lies.
        tensors: Every tensor, shard by shard in the order of the headers.
        files: Names of the shards, in order.
        metadata: The `__metadata__` of each shard.
        shards: The open shards by name, for the writer.
        index: The index of a sharded checkpoint, or None.
        original: What is in the files, where this has further tensors and another configuration (`apart.extended`).
    """

    folder: Path
    config: dict[str, Any]
    config_file: WatchedFile
    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]
    metadata: dict[str, dict[str, str]]
    shards: dict[str, Shard] = field(repr=False)
    index: Index | None = field(repr=False, default=None)
    original: Checkpoint | None = field(repr=False, default=None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, allow_pickle: bool = False) -> Checkpoint:
        """Read the configuration and every shard's header.

        Args:
            folder: A folder with config.json and weights.
            allow_pickle: Whether weights that are only there as pickles may be loaded (plain tensors only).

        Returns:
            The checkpoint; index, headers and file lengths agree.

        Raises:
            CheckpointError: The folder, its configuration, its index or a file is missing or broken, is a link to
                another place, or changed meanwhile; or it is a checkpoint of another kind.
            TensorError: The index and the shards disagree about a tensor.
        """
        folder = Path(folder)
        names = entries(folder)
        if CONFIG not in names:
            problem = f"{folder}: has no {CONFIG}: pass a Hugging Face checkpoint folder"
            raise CheckpointError(other_kind(folder, names) or problem)
        refuse_adapter(folder, names)
        _refuse_pipes(folder, names)
        config_file = WatchedFile.of(inside(folder, folder / CONFIG))
        config = read_object(config_file)
        paths, index = find_weights(folder, names, config, allow_pickle)
        shards = {name: _open_shard(WatchedFile.of(inside(folder, path))) for name, path in paths.items()}
        tensors = _collect(folder, shards, None if index is None else index.weight_map)
        metadata = {file: shard.header.metadata for file, shard in shards.items()}
        opened = cls(folder, config, config_file, tensors, tuple(shards), metadata, shards, index)
        opened.check_unchanged()
        return opened

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file that was read isn't what it was when the checkpoint was opened."""
        for file in self.watched():
            file.check()

    def watched(self) -> tuple[WatchedFile, ...]:
        """The files that are read: config, index and weights."""
        index = () if self.index is None else (self.index.file,)
        return (self.config_file, *index, *(shard.file for shard in self.shards.values()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every stored tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    def size(self, dtype: torch.dtype | None = None) -> int:
        """How many bytes its values take, in their own types or floating-point ones in another."""
        found = ((i.shape, dtype if dtype and i.dtype.is_floating_point else i.dtype) for i in self.tensors.values())
        return sum(math.prod(shape) * kind.itemsize for shape, kind in found)

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
            slots = [self.shards[file].header.slots[name] for name in group]
            give_memory_back(sum(slot.end - slot.start for slot in slots))
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


def _refuse_pipes(folder: Path, names: list[str]) -> None:
    """Refuse a folder with a pipe or a device, at which transformers would wait for ever, or with endless JSON."""
    for name in names:
        path = folder / name
        if os.path.exists(path) and not os.path.isdir(path):
            regular_file(path)
    if os.path.exists(folder / _GENERATION):
        bounded(WatchedFile.of(inside(folder, folder / _GENERATION)))


def _open_shard(file: WatchedFile) -> Shard:
    return PickleShard.open(file) if file.path.suffix == ".bin" else SafetensorsShard.open(file)


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
