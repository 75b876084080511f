"""The result of matching two models: which group element moves each block, and how well it did.

An alignment is a small file of its own: it can be applied to a sibling of the model it was found for, inverted
and composed.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from isobasin.alignment.file import FILE_NAME, Contents, read, write
from isobasin.alignment.stream import Turned
from isobasin.architectures.blocks import AttentionSite
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import kind
from isobasin.architectures.schema import Specification
from isobasin.errors import AlignmentError
from isobasin.model import Blocks, Source, TensorBlocks
from isobasin.symmetries import attention, feedforward
from isobasin.symmetries.feedforward import FeedForwardGroup
from isobasin.symmetries.groups import AttentionGroup
from isobasin.text import finite
from isobasin.verification import Verification

if TYPE_CHECKING:
    from isobasin.verbs.apply import Moved

__all__ = [
    "FILE_NAME",
    "Alignment",
    "FeedForwardAlignment",
    "FeedForwardStatistics",
    "LayerAlignment",
    "LayerStatistics",
    "ResidualAlignment",
    "ResidualStatistics",
    "condition_of",
]


@dataclass(frozen=True)
class Alignment:
    """One group element per block, with where it came from.

    Attributes:
        model_type: Architecture that it fits.
        layers: The attention blocks in order.
        provenance: Free facts: names and SHA-256 of the inputs, method, head cost.
        verified: How the moved model's outputs compare with the model's, if that was measured; not saved.
        feedforward: The feed-forward blocks in order; empty if they stay as they are.
        stream: The residual stream, which moves before the blocks; None if it stays as it is.
    """

    model_type: str
    layers: tuple[LayerAlignment, ...]
    provenance: Mapping[str, str]
    verified: Verification | None = None
    feedforward: tuple[FeedForwardAlignment, ...] = ()
    stream: ResidualAlignment | None = None

    @property
    def blocks(self) -> int:
        """How many blocks are moved."""
        return len(self.layers) + len(self.feedforward)

    def distance(self) -> dict[str, float]:
        """Frobenius distance of all attention weights before and after."""
        return _total(self.layers)

    def feedforward_distance(self) -> dict[str, float]:
        """Frobenius distance of all weights of the feed-forward blocks before and after."""
        return _total(self.feedforward)

    def total_distance(self) -> dict[str, float]:
        """Frobenius distance of all that is matched, before and after."""
        if self.stream is not None:
            found = self.stream.statistics
            return {"before": found.distance_before, "after": found.distance_after}
        parts = self.distance(), self.feedforward_distance()
        return {when: math.hypot(*(part[when] for part in parts)) for when in ("before", "after")}

    def inverse(self) -> Alignment:
        """The alignment that takes every move back.

        Raises:
            AlignmentError: It turns the residual stream and shifts routers by vectors of that.
        """
        self._check_turned(self)
        layers = tuple(layer.inverse() for layer in self.layers)
        moved = tuple(layer.inverse() for layer in self.feedforward)
        stream = None if self.stream is None else self.stream.inverse()
        facts = {**self.provenance, "operation": "inverse"}
        return Alignment(self.model_type, layers, facts, feedforward=moved, stream=stream)

    def compose(self, first: Alignment) -> Alignment:
        """The alignment that acts as `first` and then as this one.

        Raises:
            AlignmentError: If the two don't fit one architecture, or this one turns the residual stream after the other
                shifted routers by vectors of that.
        """
        self._check_turned(first)
        groups = [layer.group for layer in first.feedforward]
        self.check_fits(first.model_type, [layer.group for layer in first.layers], "the other alignment", groups)
        layers = tuple(b.compose(a) for a, b in zip(first.layers, self.layers, strict=True))
        moved = self.feedforward or first.feedforward
        if self.feedforward and first.feedforward:
            moved = tuple(b.compose(a) for a, b in zip(first.feedforward, self.feedforward, strict=True))
        stream = self.stream or first.stream
        if self.stream is not None and first.stream is not None:
            if self.stream.group != first.stream.group or self.stream.keep_gains != first.stream.keep_gains:
                raise AlignmentError("the two alignments move the residual stream by different groups")
            stream = self.stream.compose(first.stream)
        return Alignment(self.model_type, layers, {"operation": "composed"}, feedforward=moved, stream=stream)

    def _check_turned(self, shifting: Alignment) -> None:
        """Refuse to turn the residual stream after shifts of routers, whose entries here have no basis."""
        if self.stream is not None and any(bool(x.element.shift.any()) for x in shifting.feedforward):
            raise AlignmentError("routers are shifted by vectors of the residual stream, which is turned after that")

    def check_fits(
        self,
        model_type: str,
        groups: Sequence[AttentionGroup],
        name: str,
        feedforward: Sequence[FeedForwardGroup] = (),
    ) -> None:
        """Refuse an architecture that this alignment wasn't made for.

        Args:
            model_type: Its model type.
            groups: Groups of its attention blocks.
            name: What to call it.
            feedforward: Groups of its feed-forward blocks; compared if there are any on both sides.

        Raises:
            AlignmentError: Naming the first difference.
        """
        if kind(model_type) != kind(self.model_type):
            raise AlignmentError(f"the alignment is for {self.model_type}, but {name} is {model_type}")
        both = self.feedforward and feedforward
        for entries, found in ((self.layers, groups), (self.feedforward, feedforward) if both else ((), ())):
            if len(found) != len(entries):
                raise AlignmentError(f"the alignment has {len(entries)} layers, {name} has {len(found)}")
            for entry, group in zip(entries, found, strict=True):
                if entry.group != group:
                    raise AlignmentError(f"layer {entry.layer}: the alignment is for {entry.group}, {name} has {group}")

    def sites(self, model: Blocks) -> tuple[Sequence[AttentionSite], Sequence[FeedForward]]:
        """The attention and the feed-forward blocks of a model that this alignment moves.

        Raises:
            AlignmentError: If the model has another architecture.
        """
        specification = model.specification
        moving = model.feedforwards() if self.feedforward else ()
        groups = [site.group for site in specification.sites], [site.group for site in moving]
        self.check_fits(specification.model_type, groups[0], model.name, groups[1])
        for first, *others in specification.ties:
            for other in others:
                if not attention.same_heads(self.layers[first].element, self.layers[other].element):
                    raise AlignmentError(
                        f"layers {first} and {other} of {model.name} read one table of position biases, but the "
                        "alignment permutes their heads differently"
                    )
        return specification.sites, moving

    def apply(self, model: Source, output: str | os.PathLike[str] | None = None, **options: Any) -> Moved:
        """Make the move on a model; arguments and result as `isobasin.apply`."""
        from isobasin.verbs.apply import apply

        return apply(self, model, output, **options)

    def moved_tensors(self, model: Mapping[str, Tensor], specification: Specification) -> dict[str, Tensor]:
        """Tensors in memory after the move, for an architecture of your own (`isobasin.align_tensors`).

        Returns:
            All of `model`'s tensors; those of moved blocks are new, cast to their types once.
        """
        new = dict(model)
        for tensors in self.moved(TensorBlocks("model", model, specification)):
            new |= {name: tensor.to(model[name]) for name, tensor in tensors.items()}
        return new

    def moved(self, model: Blocks, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
        """The stored tensors of every block after the move, a block at a time, in float64 as they are computed.

        Raises:
            AlignmentError: If the model has another architecture.
        """
        sites, moving = self.sites(model)
        turned = self.turned(model, device)
        model = turned or model
        done: set[str] = set()
        for layer, site in zip(self.layers, sites, strict=True):
            stored = model.double(site.shapes(), device)
            new = site.write(stored, attention.act(layer.group, layer.element.to(device), site.read(stored, device)))
            # Blocks that read one table move it alike: it is given once.
            yield {name: tensor for name, tensor in new.items() if name not in done}
            done |= new.keys()
        for layer, site in zip(self.feedforward, moving, strict=True):
            stored = model.double(site.shapes(), device)
            new = site.write(stored, feedforward.act(layer.group, layer.element.to(device), site.read(stored, device)))
            yield new
            done |= new.keys()
        if turned is not None:
            yield from turned.rest(done)

    def turned(self, model: Blocks, device: str = "cpu") -> Turned | None:
        """The model after the move of the residual stream alone; None if that stays as it is.

        Raises:
            AlignmentError: If the model's stream has another group.
        """
        if self.stream is None:
            return None
        stream = model.stream(keep_gains=self.stream.keep_gains)
        norms = len(self.stream.element.gains)
        if stream.group != self.stream.group or len(stream.norms) != norms:
            raise AlignmentError(
                f"the alignment moves a residual stream by {self.stream.group} and {norms} normalisations, "
                f"{model.name} has {stream.group} and {len(stream.norms)}"
            )
        return Turned(model, stream, self.stream.element, device)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one safetensors file, all of it or nothing."""
        contents = Contents(self.model_type, self.layers, self.feedforward, self.provenance, self.stream)
        write(contents, Path(path), force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote; a folder stands for the alignment file that `align` left in it.

        Raises:
            AlignmentError: If it is missing, damaged, or no alignment.
        """
        found = read(Path(path))
        blocks = found.feedforward, found.stream
        return cls(found.model_type, found.layers, found.provenance, None, *blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {
            "distance": finite(self.distance()),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.feedforward:
            layers = [layer.to_json() for layer in self.feedforward]
            found["feedforward"] = {"distance": finite(self.feedforward_distance()), "layers": layers}
        if self.stream is not None:
            found["residual"] = self.stream.to_json()
        return found

    def __repr__(self) -> str:
        gap = _gap("distance", self.distance())
        if self.feedforward:
            gap += _gap("feed-forward", self.feedforward_distance()) or ", with feed-forward"
        if self.stream is not None:
            gap += f", residual stream by {self.stream.group}"
        return f"Alignment({self.model_type}, {len(self.layers)} layers{gap})"

    def _repr_html_(self) -> str:
        tables = [_table([layer.to_json() for layer in self.layers], _COLUMNS)]
        if self.feedforward:
            tables.append(_table([layer.to_json() for layer in self.feedforward], _FEEDFORWARD_COLUMNS))
        return f"<p>{html.escape(repr(self))}</p>{''.join(tables)}"


# What a notebook shows, by the names that `to_json` has.
_DISTANCES = {"distance_before": "distance before", "distance_after": "after"}
_COLUMNS = {
    "layer": "layer",
    **_DISTANCES,
    "condition": "condition",
    "iterations": "iterations",
    "status": "status",
    "head_permutation": "head permutation",
}
_FEEDFORWARD_COLUMNS = {"layer": "feed-forward", **_DISTANCES, "moved_units": "units moved", "status": "status"}


def _total(entries: Sequence[LayerAlignment | FeedForwardAlignment]) -> dict[str, float]:
    before = [entry.statistics.distance_before for entry in entries]
    after = [entry.statistics.distance_after for entry in entries]
    return {"before": math.hypot(*before), "after": math.hypot(*after)}


def _gap(name: str, distance: dict[str, float]) -> str:
    known = not math.isnan(distance["before"])  # an inverse or a composition was never matched
    return f", {name} {distance['before']:.4g} -> {distance['after']:.4g}" if known else ""


def _table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in columns.values())
    body = "".join("<tr>" + "".join(f"<td>{_shown(row[c])}</td>" for c in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
