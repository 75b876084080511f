"""The safetensors file format: 8 bytes of header length, a JSON header, then every tensor's bytes.

The reader uses it to know where the bytes of a tensor lie, the writer to lay out a file before it has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isobasin.checkpoints.files import WatchedFile
from isobasin.errors import CheckpointError, TensorError, first_line

_LFS_POINTER = b"version https://git-lfs"
_PACKED = "F4"  # two values in a byte: the header counts values, torch counts bytes

_TYPES = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", _PACKED: "float4_e2m1fn_x2"},
}
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in _TYPES.items() if hasattr(torch, name)}
CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """What a tensor is, and its bytes' place in the file.

    Attributes:
        shape: The tensor's shape.
        dtype: Its type.
        start, end: First byte and one past the last, from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """The head of a safetensors file.

    Attributes:
        raw: The bytes before the first tensor, the length included.
        slots: Every tensor, in the order of the header.
        metadata: The free text entries.
    """

    raw: bytes
    slots: dict[str, Slot]
    metadata: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return max((slot.end for slot in self.slots.values()), default=len(self.raw))


def read_header(file: WatchedFile) -> Header:
    """Read and check the head of a safetensors file.

    Args:
        file: The file.

    Returns:
        Its header; the file is as long as the header says.

    Raises:
        CheckpointError: The file is truncated, not in the format, or changed since it was first looked at.
        TensorError: A tensor's type is unknown to this version of torch.
    """
    with file.open() as opened:
        try:
            with safe_open(file.path, framework="pt"):  # checks the syntax, the offsets and the lengths
                pass
        except (SafetensorError, OSError) as error:
            file.check()
            raise CheckpointError(f"{file.path}: {_complaint(opened, error)}") from error
        length = opened.read(8)
        raw = bytearray(8 + int.from_bytes(length, "little"))
        file.fill(opened, 0, memoryview(raw))
    try:
        listing = json.loads(bytes(raw[8:]), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: not a safetensors file ({first_line(error)}): restore it") from error
    metadata = listing.pop("__metadata__", None) or {}
    slots = {name: _slot(file.path, name, entry, len(raw)) for name, entry in listing.items()}
    return Header(bytes(raw), slots, metadata)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name comes twice: which entry counts would depend on the reader."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def make_header(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], metadata: dict[str, str]) -> Header:
    """Lay out a new file.

    Args:
        tensors: Shape and type of every tensor, in the order that the header shall have.
        metadata: The free text entries; they are stored in the order of their names.

    Returns:
        The header; wide types come first in the data, so that every tensor is aligned.
    """
    spans: dict[str, tuple[int, int]] = {}
    end = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        start, end = end, end + prod(shape) * dtype.itemsize
        spans[name] = (start, end)
    listing: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, (shape, dtype) in tensors.items():
        code = CODES[dtype]
        stored = (*shape[:-1], 2 * shape[-1]) if code == _PACKED else shape
        listing[name] = {"dtype": code, "shape": stored, "data_offsets": spans[name]}
    text = json.dumps(listing, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text
    slots = {
        name: Slot(shape, dtype, len(raw) + spans[name][0], len(raw) + spans[name][1])
        for name, (shape, dtype) in tensors.items()
    }
    return Header(raw, slots, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend on nothing but what is given.

    The safetensors library writes the same, with the free text entries in an order that changes from run to run.
    """
    header = make_header({name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}, metadata)
    with path.open("wb") as file:
        file.write(header.raw)
        for name, slot in sorted(header.slots.items(), key=lambda item: item[1].start):
            file.seek(slot.start)
            file.write(raw_bytes(tensors[name]))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in their order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _slot(path: Path, name: str, entry: dict[str, Any], base: int) -> Slot:
    code = entry["dtype"]
    if code not in DTYPES:
        raise TensorError(f"{path}: tensor {name!r} has type {code}, unknown to this torch: upgrade torch")
    shape = tuple(entry["shape"])
    if code == _PACKED:
        shape = (*shape[:-1], shape[-1] // 2)
    start, end = entry["data_offsets"]
    return Slot(shape, DTYPES[code], base + start, base + end)


def _complaint(file: BinaryIO, error: Exception) -> str:
    """Why an open file isn't readable as safetensors, and what to do."""
    file.seek(0)
    if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
        return "a Git LFS pointer, not the weights: run `git lfs pull`"
    return f"truncated or not a safetensors file ({first_line(error)}): download it again"
