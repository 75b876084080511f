"""What a move did to every block of a model, as it is recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from isobasin.alignment import ATTENTION, STREAM, Alignment, AttentionMove
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.choices import HeadCost
from isobasin.matching.heads import head_costs
from isobasin.matching.whole.pair import Pair
from isobasin.model import Blocks, Model, read_blocks
from isobasin.records.file import Key
from isobasin.records.schema import AlignmentRecord, Entry, LayerRecord, StreamRecord, UnitsRecord

Record = TypeVar("Record", bound=Entry)
Facts = dict[str, Any]


def matched(key: Key, a: Model, b: Model, found: Alignment, cost: HeadCost, seconds: float) -> AlignmentRecord:
    """What a match says of every block of two models."""
    return _record(key, a, b, found, cost, seconds, [move.to_json() for move in found.moves])


def measured(
    key: Key, before: tuple[Model, Model], after: tuple[Model, Model], found: Alignment, cost: HeadCost
) -> AlignmentRecord:
    """The same of an alignment that was found before: how far blocks are apart is measured.

    Args:
        key: The line.
        before: The two models as they are.
        after: The ends of the line; the second is where `found` moves its model.
        found: The alignment.
        cost: What heads are compared by.
    """
    first, last = _distances(found, *before), _distances(found, *after)
    facts = [
        {**move.to_json(), "distance_before": first[move.block], "distance_after": last[move.block]}
        for move in found.moves
    ]
    return _record(key, after[0], before[1], found, cost, 0.0, facts)


def _record(
    key: Key, a: Model, b: Model, found: Alignment, cost: HeadCost, seconds: float, facts: Sequence[Facts]
) -> AlignmentRecord:
    # Heads are compared where they are matched: in the basis of the reference's residual stream.
    turned = found.turned(b) or b
    layers: list[LayerRecord] = []
    units: list[UnitsRecord] = []
    stream: StreamRecord | None = None
    for move, said in zip(found.moves, facts, strict=True):
        kind, _, label = move.block.partition(".")
        if kind == STREAM:
            stream = _of(StreamRecord, said, condition=float(torch.linalg.cond(move.element.matrix)))
        elif kind == ATTENTION:
            layers.append(_of(LayerRecord, said, head_costs=_costs(a, turned, len(layers), move, cost)))
        else:
            units.append(_of(UnitsRecord, said, block=label))
    pair, method = key
    return AlignmentRecord(
        pair=pair, method=method, seconds=seconds, layers=tuple(layers), feedforward=tuple(units), stream=stream
    )


def _of(kind: type[Record], facts: Facts, **more: Any) -> Record:
    return kind(**{name: value for name, value in facts.items() if name in kind.model_fields}, **more)


def _costs(a: Blocks, b: Blocks, index: int, move: AttentionMove, cost: HeadCost) -> tuple[tuple[float, ...], ...]:
    """Stage 1's cost of every pair of heads of one layer."""
    costs = head_costs(move.group, read_blocks(a, [index]), read_blocks(b, [index]), cost)[0]
    table: list[list[float]] = rearrange(costs, "g h s t -> (g s) (h t)").tolist()
    return tuple(map(tuple, table))


def _distances(found: Alignment, a: Model, b: Model) -> dict[str, float]:
    """Frobenius distance of two models' blocks, and of all tensors along their streams, by what moves call them.

    As in a match, models whose streams are turned are compared with normalisations folded into their readers.
    """
    blocks, whole = zip(found.paired(a), found.paired(b), strict=True), dict[str, float]()
    models: tuple[Blocks, Blocks] = (a, b)
    if found.stream is not None:
        pair = Pair.of(a, b, keep_gains=found.stream.group.keep_gains)
        models, whole = pair.folded, {STREAM: pair.before.distance}
    return whole | {
        move.block: _apart(_weights(models[0], one), _weights(models[1], other)) for (move, one), (_, other) in blocks
    }


def _weights(model: Blocks, block: AttentionBlock | FeedForward) -> Mapping[str, Tensor]:
    return block.read(model.double(block.shapes())).tensors()


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(x.double() - other[name].double())) for name, x in one.items()))
