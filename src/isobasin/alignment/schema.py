"""What the header of an alignment file says: which group each element belongs to, and how its match went."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt

from isobasin.alignment.entries import FeedForwardStatistics, LayerStatistics, ResidualStatistics
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.stream import Basis

Found = TypeVar("Found", LayerStatistics, FeedForwardStatistics, ResidualStatistics)


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

    groups: PositiveInt
    queries: PositiveInt
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

    def read(self, kind: type[Found]) -> Found:
        """The statistics of a kind, each of the type that it has there, with the numbers that JSON can't hold."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in self.statistics.items()}
        found = kind(**values)
        for name, default in asdict(kind()).items():
            value = getattr(found, name)
            if not isinstance(value, (float, int) if isinstance(default, float) else type(default)):
                raise ValueError(f"{name} is {value!r}")
        return found


class _Entry(_Statistics):
    layer: int


class ResidualEntry(_Statistics):
    """The residual stream in a file."""

    width: int
    basis: Basis
    norms: int
    keep_gains: bool


class LayerEntry(_Entry):
    """An attention block in a file."""

    group: _Attention


class FeedForwardLayerEntry(_Entry):
    """A feed-forward block in a file."""

    group: _FeedForward


class Header(_Model):
    """All that is no tensor in a file."""

    model_type: str
    provenance: dict[str, str]
    layers: list[LayerEntry]
    feedforward: list[FeedForwardLayerEntry] = []
    residual: ResidualEntry | None = None

    def check_sizes(self, held: int) -> None:
        """Refuse groups that are larger than all tensors together, before anything of their size is made.

        Args:
            held: Number of values of the file's tensors; a group has at least as many as its largest size.
        """
        groups = [entry.group.model_dump(exclude={"means"}) for entry in (*self.layers, *self.feedforward)]
        if self.residual is not None:
            groups.append({"width": self.residual.width, "norms": self.residual.norms})
        claimed = sum(max(_integers(group), default=0) for group in groups)
        if claimed > held:
            raise ValueError(f"its groups are of size {claimed:.4g}, its tensors have {held} values")


def _integers(value: Any) -> Iterator[int]:
    """Every integer in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value
