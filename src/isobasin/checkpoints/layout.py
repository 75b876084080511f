"""The safetensors file format: 8 bytes of header length, a JSON header, then every tensor's bytes.

The reader uses it to know where the bytes of a tensor lie, the writer to lay out a file before it has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from isobasin.errors import CheckpointError, TensorError

_LFS_POINTER = b"version https://git-lfs"
_PACKED = "F4"  # two values in a byte: the header counts values, torch counts bytes

_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    _PACKED: "float4_e2m1fn_x2",
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


def read_header(path: Path) -> Header:
    """Read and check the head of a safetensors file.

    Args:
        path: The file.

    Returns:
        Its header; the file is as long as the header says.

    Raises:
        CheckpointError: The file is missing, truncated, or not in the format.
        TensorError: A tensor's type is unknown to this version of torch.
    """
    try:
        with safe_open(path, framework="pt"):  # checks the syntax, the offsets and the file's length
            pass
        with path.open("rb") as file:
            length = file.read(8)
            raw = length + file.read(int.from_bytes(length, "little"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing: download the checkpoint again") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_complaint(path, error)}") from error
    listing = json.loads(raw[8:])
    metadata = listing.pop("__metadata__", None) or {}
    slots = {name: _slot(path, name, entry, len(raw)) for name, entry in listing.items()}
    return Header(raw, slots, metadata)


def make_header(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], metadata: dict[str, str]) -> Header:
    """Lay out a new file.

    Args:
        tensors: Shape and type of every tensor, in the order that the header shall have.
        metadata: The free text entries.

    Returns:
        The header; wide types come first in the data, so that every tensor is aligned.
    """
    spans: dict[str, tuple[int, int]] = {}
    end = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        start, end = end, end + prod(shape) * dtype.itemsize
        spans[name] = (start, end)
    listing: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
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


def _slot(path: Path, name: str, entry: dict[str, Any], base: int) -> Slot:
    code = entry["dtype"]
    if code not in DTYPES:
        raise TensorError(f"{path}: tensor {name!r} has type {code}, unknown to this torch: upgrade torch")
    shape = tuple(entry["shape"])
    if code == _PACKED:
        shape = (*shape[:-1], shape[-1] // 2)
    start, end = entry["data_offsets"]
    return Slot(shape, DTYPES[code], base + start, base + end)


def _complaint(path: Path, error: Exception) -> str:
    """Why a file isn't readable as safetensors, and what to do."""
    if isinstance(error, SafetensorError):
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return "a Git LFS pointer, not the weights: run `git lfs pull`"
        return f"truncated or not a safetensors file ({first_line(error)}): download it again"
    return f"can't be read ({first_line(error)}): check the file"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
