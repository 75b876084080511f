"""Two models in one basis of the residual stream, which embeddings and readouts say: no block is matched for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.errors import ArchitectureError, TensorError
from isobasin.matching.whole.basis import StreamFit
from isobasin.matching.whole.folded import Folded
from isobasin.model import Blocks, Model
from isobasin.plain import Plain
from isobasin.symmetries.along import Along
from isobasin.symmetries.stream import Basis, StreamGroup, rows
from isobasin.symmetries.turning import maps
from isobasin.verbs.fingerprint import fingerprint_of
from isobasin.verbs.scan import layer_pairs

AnyBlock = TypeVar("AnyBlock", AttentionBlock, FeedForward)

# Of a table of tokens or positions, enough to find the map by.
_ROWS = 2**14
# Directions in which tables have less than this share of their mean size are noise; and with so few directions the best
# partners of models trained apart correlate by chance (docs/provenance.md).
_FAINT = 0.1
_DIRECTIONS = 32
# Where tables correlate less than this share of what they do after a map of the stream, it was moved.
_TURNED = 0.5


@dataclass(frozen=True)
class StreamScore(Plain):
    """What the embeddings and readouts of two models say of their residual streams.

    Attributes:
        before: Their correlation as they are.
        after: In the basis that brings them nearest. High for any two models with few tokens: no sign of kinship.
        said: The share of the stream's directions in which blocks were compared: those that tokens, positions and
            readouts lie in, since nothing says how others go together. All, where that would leave too few.
    """

    before: float
    after: float
    said: float
    _also = ("moved",)

    @property
    def moved(self) -> bool:
        """Whether a map of the stream explains the difference."""
        return self.before < _TURNED * self.after


@dataclass(frozen=True)
class InOneBasis:
    """Two models with normalisations folded, the second in the first one's basis, of as many layers each.

    Attributes:
        a, b: The models.
        stream: How their streams go together.
    """

    a: Blocks
    b: Blocks
    stream: StreamScore


@dataclass(frozen=True)
class Fitted:
    """The map of the stream that embeddings, positions and readouts of two models say.

    Attributes:
        a, b: The models with normalisations folded, each in its own basis.
        matrix: What brings b's stream to a's, `(d, d)`.
        tables: Rows of a's tables and of b's for them.
    """

    a: Folded
    b: Folded
    matrix: Tensor
    tables: list[tuple[Along, Tensor, Tensor]]


def fitted(a: Model, b: Model, device: str) -> Fitted | None:
    """The map that brings b's stream to a's.

    None where nothing is known of a stream, where their groups differ, or where nothing outside the blocks is alike.
    """
    try:
        one, other = (Folded.of(model, model.stream(), device) for model in (a, b))
    except (ArchitectureError, TensorError):
        return None
    group = other.plan.group
    if (one.plan.group.width, one.plan.group.basis) != (group.width, group.basis):
        return None
    tables = list(_outer(one, other))
    if not tables:
        return None
    fit = StreamFit(group, device)
    for item, x, y in tables:
        fit.add(item.role, x, y)
    return Fitted(one, other, fit.best(), tables)


def in_one_basis(a: Model, b: Model, device: str) -> InOneBasis | None:
    """Bring b into the basis of a's residual stream, and leave out layers that have no partner; None as `fitted`."""
    found = fitted(a, b, device)
    if found is None:
        return None
    one, other, group, tables = found.a, found.b, found.b.plan.group, found.tables
    said = _said(group, [x for _, x, _ in tables])
    turned = replace(other, maps=maps(group, found.matrix))
    score = StreamScore(_correlation(tables), _correlation(_outer(one, turned)), float(said.trace()) / len(said))
    if score.said < 1:
        one, turned = replace(one, maps=maps(group, said)), replace(other, maps=maps(group, found.matrix @ said))
    if len(a.specification.attention) == len(b.specification.attention):
        return InOneBasis(one, turned, score)
    pairs = layer_pairs(*(fingerprint_of(model, device) for model in (a, b)))
    return InOneBasis(_some(one, [x.ours for x in pairs]), _some(turned, [x.theirs for x in pairs]), score)


def _said(group: StreamGroup, tables: Sequence[Tensor]) -> Tensor:
    """The projector onto the directions of the stream that tables have a vector in, so that their match says its map.

    The identity where that is all of a map, where too few are left for circuits to be told apart by, and where a map
    is no rotation.
    """
    whole = torch.eye(group.width, dtype=torch.float64, device=tables[0].device)
    if group.basis not in (Basis.orthogonal, Basis.centred):
        return whole
    squares, directions = torch.linalg.eigh(sum((x.mT @ x for x in tables), start=torch.zeros_like(whole)))
    sizes = squares.clamp(min=0).sqrt()
    directions = directions[:, sizes > _FAINT * sizes.mean()]
    count = directions.shape[-1] + (group.basis is Basis.centred)
    return directions @ directions.mT if _DIRECTIONS <= count < group.width else whole


def _correlation(couples: Iterable[tuple[Along, Tensor, Tensor]]) -> float:
    """The cosine of all tables of two models together."""
    sums = [torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()]) for _, x, y in couples]
    inner, ours, theirs = torch.stack(sums).sum(0)
    return float(inner / (ours * theirs).sqrt())


def _outer(a: Folded, b: Folded) -> Iterator[tuple[Along, Tensor, Tensor]]:
    """Tables and readouts that lie outside all blocks of two models, in units of a's: their common rows, `(n, d)`."""
    for x, y in zip(_tables(a), _tables(b), strict=False):
        alike = x.table or a.shape(x.tensor) == b.shape(y.tensor)
        if alike and (x.axis, x.role) == (y.axis, y.role):
            ours, theirs = (_rows(model, item) for model, item in ((a, x), (b, y)))
            count = min(len(ours), len(theirs))
            norm = ours[:count].norm()
            if norm > 0:
                yield x, ours[:count] / norm, theirs[:count] / norm


def _tables(model: Folded) -> list[Along]:
    """The axes of all matrices along its stream that are no part of a block."""
    inside = {name for block in model.blocks() for name in block.shapes()}
    return [x for x in model.plan.axes() if x.tensor not in inside and len(model.shape(x.tensor)) > 1]


def _rows(model: Folded, item: Along) -> Tensor:
    """The first rows of a table, `(n, d)`."""
    found = torch.empty(0, model.plan.group.width, dtype=torch.float64, device=model.device)
    for piece in model.pieces(item.tensor):
        found = torch.cat([found, rows(piece, item.axis, model.plan.group.width)])[:_ROWS]
        if len(found) == _ROWS:
            break
    return found


def _some(model: Folded, layers: Sequence[int]) -> Folded:
    """The same model as if it had some of its layers alone, in this order."""
    specification = model.specification
    place = dict(zip(layers, range(len(layers)), strict=True))
    numbers = {number: i for i, number in enumerate(sorted({block.layer for block in specification.attention}))}

    def some(blocks: Sequence[AnyBlock]) -> tuple[AnyBlock, ...]:
        there = [block for block in blocks if numbers[block.layer] in place]
        return tuple(sorted(there, key=lambda block: place[numbers[block.layer]]))

    attention, units = some(specification.attention), some(specification.feedforwards)
    return replace(model, specification=replace(specification, attention=attention, feedforwards=units))
