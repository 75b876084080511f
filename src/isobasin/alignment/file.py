"""The alignment file: one safetensors file with every element, and a header that says which group each belongs to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isobasin.alignment.entries import (
    FeedForwardAlignment,
    FeedForwardStatistics,
    LayerAlignment,
    LayerStatistics,
    ResidualAlignment,
    ResidualStatistics,
    plain,
)
from isobasin.architectures.blocks import labels
from isobasin.checkpoints import write_file_atomically
from isobasin.errors import AlignmentError
from isobasin.symmetries import attention, feedforward, residual
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.permutation import is_permutation
from isobasin.symmetries.residual import Basis, ResidualElement, ResidualGroup

FILE_NAME = "alignment.safetensors"
_FORMAT = 1


class Contents(NamedTuple):
    """What a file holds."""

    model_type: str
    layers: tuple[LayerAlignment, ...]
    feedforward: tuple[FeedForwardAlignment, ...]
    provenance: Mapping[str, str]
    residual: ResidualAlignment | None = None


def write(contents: Contents, path: Path, *, force: bool) -> None:
    """Write one safetensors file, all of it or nothing."""
    header = {
        "model_type": contents.model_type,
        "provenance": dict(contents.provenance),
        "layers": _headers(contents.layers),
        # Left out if there are none, so that programs that know attention only can read the file.
        **({"feedforward": _headers(contents.feedforward)} if contents.feedforward else {}),
        **({"residual": _residual_header(contents.residual)} if contents.residual else {}),
    }
    metadata = {"format": str(_FORMAT), "isobasin": json.dumps(header)}
    tensors = {name: part.contiguous().cpu() for name, part in _tensors(contents)}
    write_file_atomically(path, lambda file: save_file(tensors, file, metadata), force)


def read(path: Path) -> Contents:
    """Read what `write` wrote; a folder stands for the alignment file that is in it.

    Raises:
        AlignmentError: If it is missing, damaged, or no alignment.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise AlignmentError(f"{file}: no such alignment: give the {FILE_NAME} that `isobasin align` wrote")
    try:
        with safe_open(file, framework="pt") as opened:
            header = _Header.model_validate_json((opened.metadata() or {}).get("isobasin", ""))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        layers = tuple(_load_layer(entry, tensors) for entry in header.layers)
        names = labels(entry.layer for entry in header.feedforward)
        moved = tuple(_load_feedforward(*found, tensors) for found in zip(names, header.feedforward, strict=True))
        stream = None if header.residual is None else _load_residual(header.residual, tensors)
    except (SafetensorError, ValidationError, KeyError, ValueError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AlignmentError(f"{file}: not an alignment, or damaged ({reason}): write it again") from error
    return Contents(header.model_type, layers, moved, header.provenance, stream)


def _headers(entries: Sequence[LayerAlignment | FeedForwardAlignment]) -> list[dict[str, Any]]:
    return [
        {"layer": entry.layer, "group": asdict(entry.group), "statistics": plain(asdict(entry.statistics))}
        for entry in entries
    ]


def _residual_header(entry: ResidualAlignment) -> dict[str, Any]:
    facts = {"width": entry.group.width, "basis": str(entry.group.basis), "norms": len(entry.element.gains)}
    return {**facts, "keep_gains": entry.keep_gains, "statistics": plain(asdict(entry.statistics))}


def _tensors(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    for kind, entries in (("layers", contents.layers), ("feedforward", contents.feedforward)):
        for label, entry in zip(labels(entry.layer for entry in entries), entries, strict=True):
            for name, part in entry.element.tensors().items():
                real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
                yield f"{kind}.{label}.{name}", real
    if contents.residual is not None:
        for name, part in contents.residual.element.tensors().items():
            yield f"residual.{name}", part


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Bilinear(_Model):
    """A bilinear group in a file."""

    features: int
    planes: tuple[tuple[int, int], ...]

    def build(self) -> BilinearGroup:
        return BilinearGroup(self.features, self.planes)


class _Latent(_Model):
    """What heads share, in a file."""

    query: int
    key_value: int
    rotary: _Bilinear

    def build(self) -> LatentGroup:
        return LatentGroup(self.query, self.key_value, self.rotary.build())


class _Attention(_Model):
    """An attention group in a file."""

    groups: int
    queries: int
    query_key: _Bilinear
    value_output: _Bilinear
    key_shift: bool
    value_shift: bool
    norm: QueryKeyNorm | None = None
    permuted: bool = True
    table: tuple[int, ...] = ()
    sink: bool = False
    latent: _Latent | None = None
    means: int = 0

    def build(self) -> AttentionGroup:
        return AttentionGroup(
            self.groups,
            self.queries,
            self.query_key.build(),
            self.value_output.build(),
            self.key_shift,
            self.value_shift,
            self.norm,
            self.permuted,
            self.table,
            self.sink,
            None if self.latent is None else self.latent.build(),
            self.means,
        )


class _FeedForward(_Model):
    """A feed-forward group in a file."""

    units: int
    up: Scale
    gate: Scale | None
    degree: int
    experts: int | None = None
    expert_groups: int = 1
    shift: int = 0

    def build(self) -> FeedForwardGroup:
        scales = self.units, self.up, self.gate, self.degree
        return FeedForwardGroup(*scales, self.experts, self.expert_groups, self.shift)


class _Statistics(_Model):
    statistics: dict[str, float | int | str | None]

    def values(self) -> dict[str, Any]:
        """The statistics, with the numbers that JSON can't hold."""
        return {k: math.nan if v is None else v for k, v in self.statistics.items()}


class _Entry(_Statistics):
    layer: int


class _Residual(_Statistics):
    width: int
    basis: Basis
    norms: int
    keep_gains: bool


class _Layer(_Entry):
    group: _Attention


class _FeedForwardLayer(_Entry):
    group: _FeedForward


class _Header(_Model):
    model_type: str
    provenance: dict[str, str]
    layers: list[_Layer]
    feedforward: list[_FeedForwardLayer] = []
    residual: _Residual | None = None


def _load_layer(entry: _Layer, tensors: Mapping[str, Tensor]) -> LayerAlignment:
    """One attention block from its entry in the header and its tensors, with every shape checked."""
    group = entry.group.build()
    parts = _parts(f"layers.{entry.layer}", attention.identity(group).tensors(), tensors)
    element = AttentionElement.from_tensors(parts)
    if not attention.contains(group, element):
        raise ValueError(f"layer {entry.layer}: heads' permutation or maps are none of {group}")
    return LayerAlignment(entry.layer, group, element, LayerStatistics(**entry.values()))


def _load_feedforward(label: str, entry: _FeedForwardLayer, tensors: Mapping[str, Tensor]) -> FeedForwardAlignment:
    """One feed-forward block, likewise; scales that the group doesn't have are refused."""
    group = entry.group.build()
    parts = _parts(f"feedforward.{label}", feedforward.identity(group).tensors(), tensors)
    element = FeedForwardElement(**parts)
    if not is_permutation(element.permutation):
        raise ValueError(f"layer {entry.layer}: unit permutation is none")
    if not feedforward.contains(group, element):
        raise ValueError(f"layer {entry.layer}: a unit's scale or the order of experts is none of its group {group}")
    return FeedForwardAlignment(entry.layer, group, element, FeedForwardStatistics(**entry.values()))


def _load_residual(entry: _Residual, tensors: Mapping[str, Tensor]) -> ResidualAlignment:
    """The residual stream's entry, likewise; a map that the group doesn't have is refused."""
    group = ResidualGroup(entry.width, entry.basis)
    like = torch.ones(entry.norms, entry.width, dtype=torch.float64)
    parts = _parts("residual", residual.identity(group, like, like).tensors(), tensors)
    element = ResidualElement(**parts)
    if not residual.contains(group, element):
        raise ValueError(f"the residual stream's map is none of {group}")
    return ResidualAlignment(group, element, entry.keep_gains, ResidualStatistics(**entry.values()))


def _parts(prefix: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one element, of the shapes and types of another one."""
    parts: dict[str, Tensor] = {}
    for name, like in expected.items():
        # Files of versions that knew fewer parts lack those that are empty in the groups of that time.
        part = tensors.get(f"{prefix}.{name}", like) if not like.numel() else tensors[f"{prefix}.{name}"]
        # A copy: the file aligns at 8 bytes, and torch crashes on some complex tensors that don't lie at 16.
        part = torch.view_as_complex(part.clone()) if like.is_complex() else part
        if part.shape != like.shape or part.dtype != like.dtype or not part.isfinite().all():
            raise ValueError(f"{prefix}.{name} is {part.dtype} {tuple(part.shape)} or not finite")
        parts[name] = part
    return parts
