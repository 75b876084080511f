"""The alignment file: one safetensors file with every element, and a header that says which group each belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isobasin.alignment.entries import (
    FeedForwardAlignment,
    FeedForwardStatistics,
    LayerAlignment,
    LayerStatistics,
    ResidualAlignment,
    ResidualStatistics,
    condition_of,
)
from isobasin.alignment.schema import FeedForwardLayerEntry, Header, LayerEntry, ResidualEntry
from isobasin.architectures.blocks import labels
from isobasin.checkpoints import ALIGNMENT, write_file_atomically, write_tensors
from isobasin.checkpoints.files import WatchedFile
from isobasin.checkpoints.shards import SafetensorsShard
from isobasin.errors import AlignmentError, first_line
from isobasin.symmetries import attention, feedforward, stream
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement
from isobasin.symmetries.permutation import is_permutation
from isobasin.symmetries.stream import StreamElement, StreamGroup
from isobasin.text import finite

FILE_NAME = ALIGNMENT
_FORMAT = 1
_SINGULAR = 1 / torch.finfo(torch.float64).eps  # condition numbers from here on mean no inverse


class Contents(NamedTuple):
    """What a file holds."""

    model_type: str
    layers: tuple[LayerAlignment, ...]
    feedforward: tuple[FeedForwardAlignment, ...]
    provenance: Mapping[str, str]
    stream: ResidualAlignment | None = None


def write(contents: Contents, path: Path, *, force: bool) -> None:
    """Write one safetensors file, all of it or nothing."""
    header = {
        "model_type": contents.model_type,
        "provenance": dict(contents.provenance),
        "layers": _headers(contents.layers),
        # Left out if there are none, so that programs that know attention only can read the file.
        **({"feedforward": _headers(contents.feedforward)} if contents.feedforward else {}),
        **({"residual": _residual_header(contents.stream)} if contents.stream else {}),
    }
    metadata = {"format": str(_FORMAT), "isobasin": json.dumps(header)}
    tensors = dict(_tensors(contents))
    write_file_atomically(path, lambda file: write_tensors(file, tensors, metadata), force)


def read(path: Path) -> Contents:
    """Read what `write` wrote; a folder stands for the alignment file that is in it.

    Raises:
        AlignmentError: If it is missing, damaged, or no alignment.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not os.path.lexists(file):
        raise AlignmentError(f"{file}: no such alignment: give the {FILE_NAME} that `isobasin align` wrote")
    watched = WatchedFile.of(file, AlignmentError)
    try:
        return _contents(SafetensorsShard.open(watched))
    except Exception as error:  # whatever its numbers lead to
        reason = first_line(error).removeprefix(f"{file}: ")
        raise AlignmentError(f"{file}: not an alignment, or damaged ({reason}): write it again") from error


def _contents(file: SafetensorsShard) -> Contents:
    header = Header.model_validate_json(file.header.metadata.get("isobasin", ""))
    header.check_sizes(sum(prod(slot.shape) for slot in file.header.slots.values()))
    layers = tuple(_load_layer(entry, file) for entry in header.layers)
    names = labels(entry.layer for entry in header.feedforward)
    moved = tuple(_load_feedforward(*found, file) for found in zip(names, header.feedforward, strict=True))
    stream = None if header.residual is None else _load_residual(header.residual, file)
    return Contents(header.model_type, layers, moved, header.provenance, stream)


def _headers(entries: Sequence[LayerAlignment | FeedForwardAlignment]) -> list[dict[str, Any]]:
    return [
        {"layer": entry.layer, "group": asdict(entry.group), "statistics": finite(asdict(entry.statistics))}
        for entry in entries
    ]


def _residual_header(entry: ResidualAlignment) -> dict[str, Any]:
    facts = {"width": entry.group.width, "basis": str(entry.group.basis), "norms": len(entry.element.gains)}
    return {**facts, "keep_gains": entry.keep_gains, "statistics": finite(asdict(entry.statistics))}


def _tensors(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    for kind, entries in (("layers", contents.layers), ("feedforward", contents.feedforward)):
        for label, entry in zip(labels(entry.layer for entry in entries), entries, strict=True):
            for name, part in entry.element.tensors().items():
                real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
                yield f"{kind}.{label}.{name}", real
    if contents.stream is not None:
        for name, part in contents.stream.element.tensors().items():
            yield f"residual.{name}", part


def _load_layer(entry: LayerEntry, file: SafetensorsShard) -> LayerAlignment:
    """One attention block from its entry in the header and its tensors, with every shape checked."""
    group = entry.group.build()
    expected = attention.identity(group, device="meta").tensors()
    element = AttentionElement(_parts(f"layers.{entry.layer}", expected, file))
    # Maps without an inverse are none of the group either.
    if not attention.contains(group, element) or not condition_of(group, element) < _SINGULAR:
        raise ValueError(f"layer {entry.layer}: heads' permutation or maps are none of {group}")
    return LayerAlignment(entry.layer, group, element, entry.read(LayerStatistics))


def _load_feedforward(label: str, entry: FeedForwardLayerEntry, file: SafetensorsShard) -> FeedForwardAlignment:
    """One feed-forward block, likewise; scales that the group doesn't have are refused."""
    group = entry.group.build()
    parts = _parts(f"feedforward.{label}", feedforward.identity(group, device="meta").tensors(), file)
    element = FeedForwardElement(parts)
    if not is_permutation(element.permutation):
        raise ValueError(f"layer {entry.layer}: unit permutation is none")
    if not feedforward.contains(group, element):
        raise ValueError(f"layer {entry.layer}: a unit's scale or the order of experts is none of its group {group}")
    return FeedForwardAlignment(entry.layer, group, element, entry.read(FeedForwardStatistics))


def _load_residual(entry: ResidualEntry, file: SafetensorsShard) -> ResidualAlignment:
    """The residual stream's entry, likewise; a map that the group doesn't have is refused."""
    group = StreamGroup(entry.width, entry.basis)
    like = torch.ones(entry.norms, entry.width, dtype=torch.float64, device="meta")
    element = StreamElement(**_parts("residual", stream.identity(group, like, like).tensors(), file))
    if not stream.contains(group, element):
        raise ValueError(f"the residual stream's map is none of {group}")
    return ResidualAlignment(group, element, entry.keep_gains, entry.read(ResidualStatistics))


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
