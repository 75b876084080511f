"""The result of matching two models: which group element moves each block, and how well it did.

An alignment is a small file of its own: it can be applied to a sibling of the model it was found for, inverted
and composed.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from isobasin.alignment.file import Contents, read, write
from isobasin.alignment.moves import (
    ATTENTION,
    FEEDFORWARD,
    STREAM,
    AnyMove,
    AttentionMove,
    FeedForwardMove,
    Move,
    Statistics,
    StreamMove,
    condition_of,
    displaced,
    kind_of,
    named,
    unmatched,
)
from isobasin.alignment.stream import Turned, in_rows, whole
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import kind
from isobasin.architectures.schema import Specification
from isobasin.checkpoints import Value
from isobasin.errors import AlignmentError
from isobasin.model import Blocks
from isobasin.pictures import bars, inline, permutations
from isobasin.plain import Plain, finite, plain, table
from isobasin.symmetries import attention
from isobasin.tensor_blocks import TensorBlocks
from isobasin.verification import Verification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "ATTENTION",
    "FEEDFORWARD",
    "STREAM",
    "Alignment",
    "AnyMove",
    "AttentionMove",
    "FeedForwardMove",
    "Move",
    "Moved",
    "Statistics",
    "StreamMove",
    "condition_of",
    "displaced",
    "kind_of",
    "named",
    "unmatched",
    "untied_note",
]


@dataclass(frozen=True)
class Moved(Plain):
    """A model that was written or made.

    Attributes:
        path: The folder, if one was asked for.
        model: The new transformers model otherwise.
        verified: How its outputs compare with the original's, if that was asked for.
        alignment: What moved it, with the rounding predicted that storing it causes; None if nothing did.
    """

    path: Path | None
    model: PreTrainedModel | None
    verified: Verification | None = None
    alignment: Alignment | None = None


@dataclass(frozen=True)
class Alignment(Plain):
    """One group element per block, with where it came from.

    Attributes:
        model_type: Architecture that it fits.
        moves: Of the residual stream, if that is turned, which is before all others; of the attention blocks in order;
            and of the feed-forward blocks in order, unless they stay as they are.
        provenance: Free facts: names and SHA-256 of the inputs, method, head cost.
        verified: How the moved model's outputs compare with the model's, if that was measured; not saved.
    """

    model_type: str
    moves: tuple[AnyMove, ...]
    provenance: Mapping[str, str]
    verified: Verification | None = None

    @property
    def untied(self) -> bool:
        """Whether it moves a model whose tied tensors are taken apart first (`canonical.Canonical.untied`)."""
        return _UNTIED in self.provenance

    apply: ClassVar[Callable[..., Moved]]
    """Make the move on a model: the verb `isobasin.apply`, which lies above this room and adds itself."""

    def _of(self, kind: str) -> tuple[AnyMove, ...]:
        return tuple(move for move in self.moves if move.block.partition(".")[0] == kind)

    @property
    def layers(self) -> tuple[AttentionMove, ...]:
        """The moves of the attention blocks in order."""
        return cast("tuple[AttentionMove, ...]", self._of(ATTENTION))

    @property
    def feedforward(self) -> tuple[FeedForwardMove, ...]:
        """The moves of the feed-forward blocks in order; empty if they stay as they are."""
        return cast("tuple[FeedForwardMove, ...]", self._of(FEEDFORWARD))

    @property
    def stream(self) -> StreamMove | None:
        """The move of the residual stream; None if it stays as it is."""
        return next(iter(self._of(STREAM)), None)

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
        """Frobenius distance of all that is matched, before and after: of whole models, of the stream's tensors."""
        return _total(self._of(STREAM) or self.moves)

    def inverse(self) -> Alignment:
        """The alignment that takes every move back.

        Raises:
            AlignmentError: It turns the residual stream and shifts routers by vectors of that.
        """
        self._check_turned(self)
        facts = {**self.provenance, "operation": "inverse"}
        return Alignment(self.model_type, tuple(move.inverse() for move in self.moves), facts)

    def compose(self, first: Alignment) -> Alignment:
        """The alignment that acts as `first` and then as this one; what only one of the two moves, as that does.

        Raises:
            AlignmentError: If the two don't fit one architecture, or this one turns the residual stream after the other
                shifted routers by vectors of that.
        """
        self._check_turned(first)
        self.check_fits(first.model_type, [(move.block, move.group) for move in first.moves], "the other alignment")
        if self.stream is not None and first.stream is not None and self.stream.group != first.stream.group:
            raise AlignmentError("the two alignments move the residual stream by different groups")
        before = {move.block: move for move in first.moves}
        own = {move.block: move.compose(before[move.block]) if move.block in before else move for move in self.moves}
        # Whatever order the blocks of either are in, the stream comes first.
        both = sorted((before | own).values(), key=lambda move: move.block != STREAM)
        note = {_UNTIED: "true"} if self.untied or first.untied else {}
        return Alignment(self.model_type, tuple(both), {"operation": "composed", **note})

    def _check_turned(self, shifting: Alignment) -> None:
        """Refuse to turn the residual stream after shifts of routers, whose entries here have no basis."""
        if self.stream is not None and any(bool(x.element.shift.any()) for x in shifting.feedforward):
            raise AlignmentError("routers are shifted by vectors of the residual stream, which is turned after that")

    def check_fits(self, model_type: str, groups: Sequence[tuple[str, object]], name: str) -> None:
        """Refuse an architecture that this alignment wasn't made for.

        Args:
            model_type: Its model type.
            groups: The groups of its blocks, each with the block's name; kinds of blocks of which there are none are
                not compared.
            name: What to call it.

        Raises:
            AlignmentError: Naming the first difference.
        """
        if kind(model_type) != kind(self.model_type):
            raise AlignmentError(f"the alignment is for {self.model_type}, but {name} is {model_type}")
        for which in (ATTENTION, FEEDFORWARD):
            moves, found = self._of(which), [item for item in groups if item[0].partition(".")[0] == which]
            if not moves or not found:
                continue
            if len(found) != len(moves):
                raise AlignmentError(f"the alignment has {len(moves)} layers, {name} has {len(found)}")
            for move, (block, group) in zip(moves, found, strict=True):
                if (move.block, move.group) != (block, group):
                    raise AlignmentError(f"layer {move.layer}: the alignment is for {move.group}, {name} has {group}")

    def paired(self, model: Blocks) -> list[tuple[AnyMove, AttentionBlock | FeedForward]]:
        """The moves of attention and feed-forward blocks with the blocks of a model that they move.

        Raises:
            AlignmentError: If the model has another architecture.
        """
        specification = model.specification
        found = list(named(ATTENTION, specification.attention))
        if self.feedforward:
            found += named(FEEDFORWARD, model.feedforwards())
        self.check_fits(specification.model_type, [(name, block.group) for name, block in found], model.name)
        for first, *others in specification.ties:
            for other in others:
                if not attention.same_heads(self.layers[first].element, self.layers[other].element):
                    raise AlignmentError(
                        f"layers {first} and {other} of {model.name} read one table of position biases, but the "
                        "alignment permutes their heads differently"
                    )
        moves = {move.block: move for move in self.moves}
        return [(moves[name], block) for name, block in found]

    def moved_tensors(self, model: Mapping[str, Tensor], specification: Specification) -> dict[str, Tensor]:
        """Tensors in memory after the move, for an architecture of your own (`isobasin.align_tensors`).

        Returns:
            All of `model`'s tensors; those of moved blocks are new, cast to their types once. What is one tensor under
            several names stays one, and a copy of a moved one moves with it.

        Raises:
            AlignmentError: The alignment is for another architecture.
            TensorError: As `isobasin.align_tensors`, or one tensor under several names would become several.
        """
        blocks, moved = TensorBlocks("model", model, specification), dict[str, Tensor]()
        for tensors in self.moved(blocks):
            moved |= {name: tensor.to(model[name]) for name, tensor in tensors.items()}
        return {**model, **blocks.shared(moved)}

    def moved(
        self, model: Blocks, device: str = "cpu", see: Callable[[AnyMove, Any], None] = lambda move, weights: None
    ) -> Iterator[dict[str, Tensor]]:
        """The stored tensors of every block after the move, a block at a time, in float64 as they are computed.

        Args:
            model: What is moved.
            device: Where.
            see: Shown every move and the weights of its block after it, before they are given.

        Raises:
            AlignmentError: If the model has another architecture.
        """
        for tensors in flowing(self, model, device, see):
            yield {name: whole(value) for name, value in tensors.items()}

    def turned(self, model: Blocks, device: str = "cpu") -> Turned | None:
        """The model after the move of the residual stream alone; None if that stays as it is.

        Raises:
            AlignmentError: If the model's stream has another group.
        """
        move = self.stream
        if move is None:
            return None
        plan = model.stream(keep_gains=move.group.keep_gains)
        if plan.group != move.group:
            raise AlignmentError(
                f"the alignment moves a residual stream by {move.group} and {move.group.norms} normalisations, "
                f"{model.name} has {plan.group} and {plan.group.norms}"
            )
        return Turned(model, plan, replace(move, element=move.element.to(device)), device)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one safetensors file, all of it or nothing."""
        write(Contents(self.model_type, self.moves, self.provenance), Path(path), force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote; a folder stands for the alignment file that `align` left in it.

        Raises:
            AlignmentError: If it is missing, damaged, or no alignment.
        """
        return cls(*read(Path(path)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {
            "distance": finite(self.distance()),
            "layers": self.layers,
            "provenance": self.provenance,
        }
        if self.feedforward:
            found["feedforward"] = {"distance": finite(self.feedforward_distance()), "layers": self.feedforward}
        if self.stream is not None:
            found["residual"] = self.stream
        return plain(found)

    def __repr__(self) -> str:
        gap = _gap("distance", self.distance())
        if self.feedforward:
            gap += _gap("feed-forward", self.feedforward_distance()) or ", with feed-forward"
        if self.stream is not None:
            gap += f", residual stream by {self.stream.group}"
        return f"Alignment({self.model_type}, {len(self.layers)} layers{gap})"

    def _picture(self) -> str:
        """How far the layers were from the reference's and are now, and which head went where."""
        draws = [
            bars(
                [move.layer for move in moves],
                {
                    "before": [move.statistics.distance_before for move in moves],
                    "after": [move.statistics.distance_after for move in moves],
                },
                f"{name} layer",
                "distance",
            )
            for name, moves in (("attention", self.layers), ("feed-forward", self.feedforward))
            if moves and not math.isnan(_total(moves)["before"])
        ]
        if self.layers:
            rows = [move.element.head_permutation().tolist() for move in self.layers]
            draws.append(permutations([move.layer for move in self.layers], rows))
        return inline(draws, "distances of layers, and heads") if draws else ""

    def _repr_html_(self) -> str:
        tables = [table([move.to_json() for move in self.layers], _COLUMNS)]
        if self.feedforward:
            tables.append(table([move.to_json() for move in self.feedforward], _FEEDFORWARD_COLUMNS))
        return f"<p>{html.escape(repr(self))}</p>{self._picture()}{''.join(tables)}"


def flowing(
    alignment: Alignment,
    model: Blocks,
    device: str = "cpu",
    see: Callable[[AnyMove, Any], None] = lambda move, weights: None,
) -> Iterator[dict[str, Value]]:
    """As `Alignment.moved`, but that long tables along the stream come in rows."""
    pairs, turned = alignment.paired(model), alignment.turned(model, device)
    done: set[str] = set()
    for move, block in pairs:
        stored = (turned or model).double(block.shapes(), device)
        weights = move.act(block.read(stored, device))
        see(move, weights)
        new = block.write(stored, weights)
        # Blocks that read one table move it alike: it is given once.
        yield {name: tensor for name, tensor in new.items() if name not in done}
        done |= new.keys()
    if turned is not None:
        for name in sorted(turned.plan.names() - done):
            yield {name: in_rows(turned, name)}


_UNTIED = "untied"


def untied_note(model: Blocks) -> dict[str, str]:
    """What an alignment's provenance says more of a model whose tied tensors were taken apart."""
    return {_UNTIED: "true"} if model.untied else {}


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


def _total(moves: Sequence[AnyMove]) -> dict[str, float]:
    before = [move.statistics.distance_before for move in moves]
    after = [move.statistics.distance_after for move in moves]
    return {"before": math.hypot(*before), "after": math.hypot(*after)}


def _gap(name: str, distance: dict[str, float]) -> str:
    known = not math.isnan(distance["before"])  # an inverse or a composition was never matched
    return f", {name} {distance['before']:.4g} -> {distance['after']:.4g}" if known else ""
