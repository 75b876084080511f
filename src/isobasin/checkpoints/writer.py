"""Writing a checkpoint like another one, with some of its tensors replaced: streaming and atomic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from isobasin.checkpoints import shards
from isobasin.checkpoints.companions import Companions, companions, copy, set_folder_mode, set_mode
from isobasin.checkpoints.layout import CODES, DTYPES, Header, Slot, make_header, raw_bytes
from isobasin.checkpoints.output import check_output, write_file_atomically, write_folder
from isobasin.checkpoints.reader import CONFIG, Checkpoint
from isobasin.errors import TensorError, warn

__all__ = ["check_output", "write_checkpoint", "write_file_atomically"]

T = TypeVar("T")

_NAMED = 5  # files that a warning names


@dataclass(frozen=True)
class InRows:
    """A long tensor that is made some rows at a time, whenever it is asked for.

    Attributes:
        shape: Of the whole.
        rows: Makes them, in order.
    """

    shape: tuple[int, ...]
    rows: Callable[[], Iterator[Tensor]]

    def whole(self) -> Tensor:
        """All rows."""
        found, at = torch.empty(0), 0
        for rows in self.rows():
            found = found if at else rows.new_empty(self.shape)
            found[at : at + len(rows)] = rows
            at += len(rows)
        return found


Value = Tensor | InRows


def write_checkpoint(
    source: Checkpoint,
    out: str | os.PathLike[str],
    moved: Iterable[Mapping[str, Value]],
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    extra: Callable[[Path], None] | None = None,
    check: Callable[[Path], T] | None = None,
) -> T | None:
    """Write a copy of `source` in which the moved tensors have new values.

    The copy has the same shards, keys, order, metadata and types, and the folder's other files with their modes;
    other models' weights and links out of the folder are left out with a warning. It is written to a hidden folder
    beside `out`, config.json last, and renamed when it is complete and checked; if anything raises, the hidden folder
    is removed and `out` is as it was.

    Args:
        source: The checkpoint to copy.
        out: The folder to write; its parents are created.
        moved: New values by tensor name, consumed once, say a layer at a time; memory holds one item.
        dtype: The type of every floating-point tensor in the copy; each is cast once. None keeps the types.
        force: Whether an existing folder may be replaced.
        extra: Adds files to the folder that it is given, before config.json is written.
        check: Looks at the complete folder before it gets its name; an exception refuses it.

    Returns:
        What `check` returns.

    Raises:
        OutputError: See `check_output`; or there is no space, or a file can't be written.
        TensorError: A tensor can't be cast to `dtype` or has values beyond its range.
        CheckpointError: A file of the source changed since it was opened.
        ValueError: A moved tensor isn't in the source, has another shape, or comes twice.
    """
    check_output(out, [source.folder], force)
    headers = {file: _cast_header(source, file, dtype) for file in source.files}
    found = companions(source.folder, frozenset(file.path.name for file in source.watched()))
    needed = sum(header.size for header in headers.values()) + sum(file.size for file in found.files.values())

    def fill(staging: Path) -> None:
        _write_shards(source, headers, moved, staging)
        _copy(source.folder, staging, found)
        _write_index(source, headers, staging)
        if extra is not None:
            extra(staging)
        _write_config(source, dtype, staging)

    def looked_at(staging: Path) -> T | None:
        try:
            result = None if check is None else check(staging)
        finally:
            # Before whatever the check found: it may have read other files than those that were copied.
            source.check_unchanged()
        _say_what_is_missing(found, source.folder, staging, out)
        return result

    return write_folder(out, source.folder, fill, looked_at, force=force, needed=needed)


def _cast_header(source: Checkpoint, file: str, dtype: torch.dtype | None) -> Header:
    """The header of a shard of the copy: the source's own, to the byte, if no type changes."""
    header = source.shards[file].header
    types = {name: slot.dtype for name, slot in header.slots.items()}
    if dtype is not None:
        if not dtype.is_floating_point or dtype not in CODES or dtype == DTYPES.get("F4"):
            raise ValueError(f"can't store a checkpoint as {dtype}")
        types = {name: dtype if kind.is_floating_point else kind for name, kind in types.items()}
    changed = [name for name, slot in header.slots.items() if slot.dtype != types[name]]
    for name in changed:
        if header.slots[name].dtype == DTYPES.get("F4"):
            raise TensorError(f"{source.folder}: tensor {name!r} is float4, which can't be cast: keep the types")
    if not changed:
        return header
    return make_header({name: (slot.shape, types[name]) for name, slot in header.slots.items()}, header.metadata)


def _write_shards(
    source: Checkpoint, headers: Mapping[str, Header], moved: Iterable[Mapping[str, Value]], folder: Path
) -> None:
    """Write the moved tensors as they come, then copy the others."""
    for file, header in headers.items():
        with (folder / file).open("xb") as out:
            out.write(header.raw)
            out.truncate(header.size)
    done: set[str] = set()
    for tensors in moved:
        for name, tensor in tensors.items():
            _check_moved(source, name, tensor, done)
            done.add(name)
            file = source.tensors[name].file
            with (folder / file).open("r+b") as out:
                at = 0
                for piece in _elements(tensor):
                    _write(out, name, headers[file].slots[name], at, piece)
                    at += len(piece)
    for file, header in headers.items():
        rest = [name for name in header.slots if name not in done]
        with (folder / file).open("r+b") as out:
            for name, at, piece in source.shards[file].pieces(rest):
                _write(out, name, header.slots[name], at, piece)
        set_mode(folder / file, source.shards[file].file.mode)


def _elements(value: Value) -> Iterator[Tensor]:
    """Its elements in order, so few at a time that it matters little what they are copied to."""
    for part in (value,) if isinstance(value, Tensor) else value.rows():
        yield from part.detach().reshape(-1).split(shards.PIECE // torch.float32.itemsize)


def _check_moved(source: Checkpoint, name: str, tensor: Value, done: set[str]) -> None:
    if name not in source.tensors:
        raise ValueError(f"moved tensor {name!r} is not in {source.folder}")
    shape = source.tensors[name].shape
    if tuple(tensor.shape) != shape:
        raise ValueError(f"moved tensor {name!r} has shape {tuple(tensor.shape)}, but {shape} in {source.folder}")
    if name in done:
        raise ValueError(f"moved tensor {name!r} comes twice")


def _write(out: BinaryIO, name: str, slot: Slot, at: int, flat: Tensor) -> None:
    """Write the elements of a tensor from index `at` on, cast to their type in the file."""
    cast = flat.to(slot.dtype)
    if slot.dtype.is_floating_point and slot.dtype != flat.dtype:
        _check_range(name, flat, slot.dtype)
    out.seek(slot.start + at * slot.dtype.itemsize)
    out.write(raw_bytes(cast))


def _check_range(name: str, flat: Tensor, dtype: torch.dtype) -> None:
    """Refuse a cast that turns finite values into infinite ones, or clips them."""
    limit = torch.finfo(dtype).max
    if flat.numel() == 0 or not flat.is_floating_point() or torch.finfo(flat.dtype).max <= limit:
        return
    low, high = (flat.float() if flat.dtype.itemsize == 1 else flat).aminmax()
    largest = max(-float(low), float(high))
    if limit < largest < float("inf"):
        raise TensorError(f"tensor {name!r} has values up to {largest:.4g}, beyond {dtype}: choose a wider type")


def _copy(folder: Path, staging: Path, found: Companions) -> None:
    """Copy what goes along with the weights; sub-folders keep their modes like the files in them."""
    for path, file in found.files.items():
        copy(file, staging / path)
    for parent in {parent for path in found.files for parent in path.parents if parent != Path()}:
        set_folder_mode(staging / parent, folder / parent)


def _say_what_is_missing(found: Companions, folder: Path, staging: Path, out: str | os.PathLike[str]) -> None:
    """Warn of what the copy lacks, where nothing new has its name."""
    for paths, reason in ((found.weights, "other weights"), (found.outside, "links out of the folder, or no files")):
        names = [str(path) for path in paths if not os.path.lexists(staging / path)]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            listed = ", ".join(names[:_NAMED]) + more
            warn(f"{os.fspath(out)}: without {listed} of {folder} ({reason}): copy what you need")


def _write_index(source: Checkpoint, headers: Mapping[str, Header], folder: Path) -> None:
    """The index of a sharded checkpoint: the one in its folder, to the byte, if it still holds."""
    index = source.index
    if index is None:
        return
    path, kept = folder / index.name, index.file.path.name == index.name and source.original is None
    if kept and all(headers[file] is source.shards[file].header for file in headers):
        copy(index.file, path)
        return
    slots = [slot for header in headers.values() for slot in header.slots.values()]
    metadata = {**index.content["metadata"], "total_size": sum(slot.end - slot.start for slot in slots)}
    _write_json(path, {**index.content, "metadata": metadata}, index.file.mode)


def _write_config(source: Checkpoint, dtype: torch.dtype | None, folder: Path) -> None:
    if dtype is None and source.original is None:
        copy(source.config_file, folder / CONFIG)
        return
    changed = dict(source.config)
    if dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in source.config] or ["dtype"]
        changed |= dict.fromkeys(keys, str(dtype).removeprefix("torch."))
    _write_json(folder / CONFIG, changed, source.config_file.mode)


def _write_json(path: Path, content: Mapping[str, object], mode: int) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    set_mode(path, mode)
