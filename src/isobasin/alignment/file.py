"""The alignment file: one safetensors file with every element, and a header that says which group each belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from isobasin.alignment.moves import AnyMove, Move, kind_of
from isobasin.alignment.schema import FORMAT, NAMES_1, Entry, Header
from isobasin.beside import ALIGNMENT, alignment_file
from isobasin.checkpoints import write_file_atomically, write_tensors
from isobasin.checkpoints.files import WatchedFile
from isobasin.checkpoints.shards import SafetensorsShard
from isobasin.errors import AlignmentError, first_line

_SINGULAR = 1 / torch.finfo(torch.float64).eps  # condition numbers from here on mean no inverse


class Contents(NamedTuple):
    """What a file holds."""

    model_type: str
    moves: tuple[AnyMove, ...]
    provenance: Mapping[str, str]


def write(contents: Contents, path: Path, *, force: bool) -> None:
    """Write one safetensors file, all of it or nothing."""
    entries = [Entry.of(move) for move in contents.moves]
    header = Header(model_type=contents.model_type, provenance=dict(contents.provenance), moves=entries)
    metadata = {"format": FORMAT, "isobasin": header.model_dump_json()}
    tensors = dict(_tensors(contents.moves))
    write_file_atomically(path, lambda file: write_tensors(file, tensors, metadata), force)


def read(path: Path) -> Contents:
    """Read what `write` wrote; a folder stands for the alignment file that is in it.

    Raises:
        AlignmentError: If it is missing, damaged, or no alignment.
    """
    file = alignment_file(path)
    if not os.path.lexists(file):
        raise AlignmentError(f"{file}: no such alignment: give the {ALIGNMENT} that `isobasin align` wrote")
    watched = WatchedFile.of(file, AlignmentError)
    try:
        return _contents(SafetensorsShard.open(watched))
    except Exception as error:  # whatever its numbers lead to
        reason = first_line(error).removeprefix(f"{file}: ")
        if isinstance(error, AlignmentError):
            raise AlignmentError(f"{file}: {reason}") from error
        raise AlignmentError(f"{file}: not an alignment, or damaged ({reason}): write it again") from error


def _contents(file: SafetensorsShard) -> Contents:
    metadata = file.header.metadata
    header = Header.read(metadata)
    header.check_sizes(sum(prod(slot.shape) for slot in file.header.slots.values()))
    moves = tuple(_load(entry, file, metadata.get("format") != FORMAT) for entry in header.moves)
    return Contents(header.model_type, moves, header.provenance)


def _tensors(moves: Sequence[AnyMove]) -> Iterator[tuple[str, Tensor]]:
    for move in moves:
        for name, part in move.element.tensors().items():
            yield f"{move.block}.{name}", torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def _load(entry: Entry, file: SafetensorsShard, old: bool) -> AnyMove:
    """One move from its entry in the header and its tensors, with every shape checked; `old`: of format 1."""
    group, statistics = entry.read()
    kind, (name, *place) = kind_of(entry.block), entry.block.split(".")
    prefix = ".".join((NAMES_1[name] if old else name, *place))
    element = kind.element(_parts(prefix, group.identity(device="meta").tensors(), file))
    # Maps without an inverse are none of the group either.
    if not group.contains(element) or (kind.condition and not kind.condition(group, element) < _SINGULAR):
        raise ValueError(f"{entry.block}: the element is none of {group}")
    return Move(entry.block, group, element, statistics)


def _parts(prefix: str, expected: Mapping[str, Tensor], file: SafetensorsShard) -> dict[str, Tensor]:
    """The tensors of one element, of the shapes and types of those expected, which hold no values."""
    found = {name: f"{prefix}.{name}" for name in expected}
    # Files of versions that knew fewer parts lack those that are empty in the groups of that time.
    lacking = [name for name, like in expected.items() if not like.numel() and found[name] not in file.header.slots]
    parts = {name: torch.empty_like(expected[name], device="cpu") for name in lacking}
    there = {name: like for name, like in expected.items() if name not in parts}
    for name, like in there.items():
        slot = file.header.slots.get(found[name])
        shape, dtype = ((*like.shape, 2), torch.float64) if like.is_complex() else (tuple(like.shape), like.dtype)
        if slot is None or (slot.shape, slot.dtype) != (shape, dtype):
            raise ValueError(f"{found[name]} is missing, or not {dtype} {shape}")
    stored = file.read([found[name] for name in there])
    for name, like in there.items():
        part = stored[found[name]]
        if not part.isfinite().all():
            raise ValueError(f"{found[name]} is not finite")
        parts[name] = torch.view_as_complex(part) if like.is_complex() else part
    return {name: parts[name] for name in expected}
