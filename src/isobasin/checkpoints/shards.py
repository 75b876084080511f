"""One weight file of a checkpoint, safetensors or pickle, behind one interface.

Both kinds have a `header`: how the file is stored, or would be stored, as safetensors.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from isobasin.checkpoints.files import WatchedFile
from isobasin.checkpoints.layout import CODES, Header, make_header, read_header
from isobasin.errors import CheckpointError, refusing

# Bytes in memory at a time while a tensor is copied; a multiple of every item size. What is written in pieces of a
# megabyte or more the system keeps in pages of as much, which a virtual machine's host takes back when they are free
# and has to give anew: that took ten times as long as the writing.
PIECE = 2**18


class Shard(Protocol):
    """One weight file.

    Attributes:
        file: Where it lies, and what it was when it was opened: it must be the same at every read.
        header: Its tensors and their places in a safetensors file.
    """

    @property
    def file(self) -> WatchedFile: ...  # noqa: D102

    @property
    def header(self) -> Header: ...  # noqa: D102

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors that own their memory."""
        ...

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """Tensors in flat pieces: name, index of the piece's first element, elements.

        A piece is valid until the next one is asked for.
        """
        ...


@dataclass(frozen=True, eq=False)
class SafetensorsShard:
    """A safetensors file; see `Shard`."""

    file: WatchedFile
    header: Header

    @classmethod
    def open(cls, file: WatchedFile) -> SafetensorsShard:
        """Read and check the header; raises CheckpointError."""
        return cls(file, read_header(file))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Shard.read`; raises CheckpointError."""
        tensors: dict[str, Tensor] = {}
        with self.file.open() as opened:
            for name in names:
                slot = self.header.slots[name]
                values = torch.empty(slot.end - slot.start, dtype=torch.uint8)
                self.file.fill(opened, slot.start, values.numpy().data)
                tensors[name] = values.view(slot.dtype).reshape(slot.shape)
        return tensors

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """See `Shard.pieces`; raises CheckpointError."""
        buffer = torch.empty(PIECE, dtype=torch.uint8)
        view = buffer.numpy().data
        with self.file.open() as opened:
            for name in names:
                slot = self.header.slots[name]
                for start in range(slot.start, slot.end, PIECE):
                    count = min(PIECE, slot.end - start)
                    self.file.fill(opened, start, view[:count])
                    at = (start - slot.start) // slot.dtype.itemsize
                    yield name, at, buffer[:count].view(slot.dtype)


@dataclass(frozen=True, eq=False)
class PickleShard:
    """A file of `torch.save`, loaded as plain tensors only; see `Shard`."""

    file: WatchedFile
    header: Header

    @classmethod
    def open(cls, file: WatchedFile) -> PickleShard:
        """Load a file without running its code, and lay it out; raises CheckpointError."""
        with file.open():
            tensors = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _load(file.path).items()}
        return cls(file, make_header(tensors, {"format": "pt"}))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Shard.read`; raises CheckpointError."""
        with self.file.open():
            tensors = _load(self.file.path)
            return {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in names}

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """See `Shard.pieces`; raises CheckpointError."""
        with self.file.open():
            tensors = _load(self.file.path)
            for name in names:
                flat = tensors[name].reshape(-1)
                step = PIECE // flat.dtype.itemsize
                for at in range(0, flat.numel(), step):
                    yield name, at, flat[at : at + step]


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, mapped from the file where its format allows it."""
    if TorchVersion(torch.__version__) < "2.6":
        reason = "weights_only loading can run code before torch 2.6 (CVE-2025-32434)"
        raise CheckpointError(f"{path}: {reason}: upgrade torch, or convert the file to safetensors")
    what = f"{path}: can't be loaded as plain tensors"
    with refusing(CheckpointError, lambda reason: f"{what} ({reason}): convert it to safetensors"):
        # files from before torch 1.6 are no zip archives and can't be mapped
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name: save the state dict")
    for name, value in state.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values()):
            raise CheckpointError(f"{path}: tensors lie in its entry {name!r}: save what is there by itself")
    return {_storable(path, name, value): value.detach() for name, value in state.items()}


def _storable(path: Path, name: object, value: object) -> str:
    """The entry's name, if it is a tensor that safetensors can hold."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor: remove it")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in CODES:
        kind = f"{value.layout}, {value.dtype}, {value.device}"
        raise CheckpointError(f"{path}: tensor {name!r} has no safetensors form ({kind}): make it dense")
    if value.nbytes > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: tensor {name!r} repeats fewer values than its shape has: save a copy of it")
    return name
