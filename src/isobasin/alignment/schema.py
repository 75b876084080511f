"""What the header of an alignment file says: which group each element belongs to, and how its match went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter

from isobasin.alignment.moves import ATTENTION, FEEDFORWARD, KINDS, STREAM, AnyMove, Statistics, block_names
from isobasin.errors import AlignmentError

FORMAT = "2"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Entry(_Model):
    """One block in a file: all of its move but the element."""

    block: str
    group: dict[str, Any]
    statistics: dict[str, float | int | str | None]

    @classmethod
    def of(cls, move: AnyMove) -> Entry:
        """What is written of a move."""
        return cls(block=move.block, group=asdict(move.group), statistics=move.figures())

    def read(self) -> tuple[Any, Statistics]:
        """The group and the statistics, each value of the type that it has there.

        Raises:
            ValueError: They are none of a block of this kind.
        """
        name, *place = self.block.split(".")
        if name not in KINDS or not all(part.isdecimal() for part in place) or bool(place) is (name == STREAM):
            raise ValueError(f"no block is called {self.block!r}")
        kind = KINDS[name]
        group = TypeAdapter(kind.group).validate_json(json.dumps(self.group), strict=True)
        if unknown := set(_paths(self.group)) - set(_paths(asdict(cast(Any, group)))):
            raise ValueError(f"{self.block}: a group has no {min(unknown)}")
        if unknown := self.statistics.keys() - set(kind.figures):
            raise ValueError(f"{self.block}: there is no figure {min(unknown)!r}")
        found = Statistics(**{k: math.nan if v is None else v for k, v in self.statistics.items()})  # pyright: ignore[reportArgumentType]
        for field in fields(found):
            value, default = getattr(found, field.name), getattr(Statistics(), field.name)
            if not isinstance(value, (float, int) if isinstance(default, float) else type(default)):
                raise ValueError(f"{self.block}: {field.name} is {value!r}")
        return group, found


def _paths(facts: Any, beginning: str = "") -> Iterator[str]:
    """The names of all facts in nested dictionaries."""
    for name, value in facts.items() if isinstance(facts, dict) else ():
        yield f"{beginning}{name}"
        yield from _paths(value, f"{beginning}{name}.")


class Header(_Model):
    """All that is no tensor in a file."""

    model_type: str
    provenance: dict[str, str]
    moves: list[Entry]

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Header:
        """The header of a file of this format, or of an older one.

        Raises:
            AlignmentError: The file is of a newer one, or has no header of an alignment.
            ValueError: The header is damaged.
        """
        written, found = metadata.get("format", "1"), metadata.get("isobasin")
        if found is None:
            raise AlignmentError("not an alignment, but other tensors: give the file that `isobasin align` wrote")
        if written not in ("1", FORMAT):
            raise AlignmentError(f"it has format {written}, this version of isobasin knows up to {FORMAT}: update it")
        header = _Header1.model_validate_json(found).now() if written == "1" else cls.model_validate_json(found)
        if len({entry.block for entry in header.moves}) < len(header.moves):
            raise ValueError("it moves a block twice")
        return header

    def check_sizes(self, held: int) -> None:
        """Refuse groups that are larger than all tensors together, before anything of their size is made.

        Args:
            held: Number of values of the file's tensors; a group has at least as many as its largest size.
        """
        # Means are no part of an element.
        groups = [{name: value for name, value in entry.group.items() if name != "means"} for entry in self.moves]
        claimed = sum(max(_numbers(group), default=0) for group in groups)
        if claimed > held:
            raise ValueError(f"its groups are of size {claimed:.4g}, its tensors have {held} values")


def _numbers(value: Any) -> Iterator[float]:
    """Every number in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


# What facts of groups were called in format 1.
_FACTS_1 = {"groups": "kv_heads", "queries": "queries_per_kv"}


class _Block1(_Model):
    """A block of layers in a file of format 1."""

    layer: int
    group: dict[str, Any]
    statistics: dict[str, float | int | str | None]


class _Stream1(_Model):
    """The stream in a file of format 1."""

    width: int
    basis: str
    norms: int
    keep_gains: bool
    statistics: dict[str, float | int | str | None]


class _Header1(_Model):
    """The header of a file of format 1, which knew each kind of block by itself."""

    model_type: str
    provenance: dict[str, str]
    layers: list[_Block1]
    feedforward: list[_Block1] = []
    residual: _Stream1 | None = None

    def now(self) -> Header:
        """The same in the present form; tensors of a block are called after it, in either format."""
        moves: list[Entry] = []
        if self.residual is not None:
            facts = self.residual.model_dump(exclude={"statistics"})
            moves.append(Entry(block=STREAM, group=facts, statistics=self.residual.statistics))
        for kind, blocks in ((ATTENTION, self.layers), (FEEDFORWARD, self.feedforward)):
            names = block_names(kind, [block.layer for block in blocks])
            for name, block in zip(names, blocks, strict=True):
                group = {_FACTS_1.get(fact, fact): value for fact, value in block.group.items()}
                moves.append(Entry(block=name, group=group, statistics=block.statistics))
        return Header(model_type=self.model_type, provenance=self.provenance, moves=moves)


# What tensors of format 1 were called after.
NAMES_1 = {"attention": "layers", "feedforward": "feedforward", "stream": "residual"}
