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
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.torch_version import TorchVersion

from isobasin.checkpoints.layout import CODES, Header, first_line, make_header, read_header
from isobasin.errors import CheckpointError

PIECE = 16 * 2**20  # bytes in memory at a time while a tensor is copied; a multiple of every item size


class Shard(Protocol):
    """One weight file.

    Attributes:
        path: Where it lies.
        header: Its tensors and their places in a safetensors file.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102

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

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> SafetensorsShard:
        """Read and check the header of `path`; raises CheckpointError."""
        return cls(path, read_header(path))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Shard.read`; raises CheckpointError."""
        try:
            with safe_open(self.path, framework="pt") as file:
                # a tensor of safe_open keeps the whole file mapped
                return {name: file.get_tensor(name).clone() for name in names}
        except (SafetensorError, OSError) as error:
            raise _changed(self.path) from error

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """See `Shard.pieces`; raises CheckpointError."""
        buffer = torch.empty(PIECE, dtype=torch.uint8)
        view = buffer.numpy().data
        with self.path.open("rb") as file:
            for name in names:
                slot = self.header.slots[name]
                file.seek(slot.start)
                for start in range(slot.start, slot.end, PIECE):
                    count = min(PIECE, slot.end - start)
                    if file.readinto(view[:count]) != count:
                        raise _changed(self.path)
                    at = (start - slot.start) // slot.dtype.itemsize
                    yield name, at, buffer[:count].view(slot.dtype)


@dataclass(frozen=True, eq=False)
class PickleShard:
    """A file of `torch.save`, loaded as plain tensors only; see `Shard`."""

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> PickleShard:
        """Load `path` without running its code, and lay it out; raises CheckpointError."""
        tensors = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _load(path).items()}
        return cls(path, make_header(tensors, {"format": "pt"}))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `Shard.read`; raises CheckpointError."""
        tensors = self._load_again()
        return {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in names}

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, int, Tensor]]:
        """See `Shard.pieces`; raises CheckpointError."""
        tensors = self._load_again()
        for name in names:
            flat = tensors[name].reshape(-1)
            step = PIECE // flat.dtype.itemsize
            for at in range(0, flat.numel(), step):
                yield name, at, flat[at : at + step]

    def _load_again(self) -> dict[str, Tensor]:
        tensors = _load(self.path)
        now = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if now != {name: (slot.shape, slot.dtype) for name, slot in self.header.slots.items()}:
            raise _changed(self.path)
        return tensors


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: changed while it was being read: run again when it is complete")


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, mapped from the file where its format allows it."""
    if TorchVersion(torch.__version__) < "2.6":
        reason = "weights_only loading can run code before torch 2.6 (CVE-2025-32434)"
        raise CheckpointError(f"{path}: {reason}: upgrade torch, or convert the file to safetensors")
    if not path.is_file():
        raise CheckpointError(f"{path}: the file is missing: download the checkpoint again")
    try:
        # files from before torch 1.6 are no zip archives and can't be mapped
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken pickle can raise anything
        reason = f"can't be loaded as plain tensors ({type(error).__name__}: {first_line(error)})"
        raise CheckpointError(f"{path}: {reason}: convert it to safetensors") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name: save the state dict")
    return {_storable(path, name, value): value.detach() for name, value in state.items()}


def _storable(path: Path, name: object, value: object) -> str:
    """The entry's name, if it is a tensor that safetensors can hold."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor: remove it")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in CODES:
        kind = f"{value.layout}, {value.dtype}, {value.device}"
        raise CheckpointError(f"{path}: tensor {name!r} has no safetensors form ({kind}): make it dense")
    return name
