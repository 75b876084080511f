"""Two whole models in the gauge in which they are compared: normalisations folded, and free means left out.

There the total distance is a sum over tensors that each belong to a few factors of the group. Every tensor counts by
its share of the reference's, see `isobasin.matching.whole.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import psutil
import torch
from torch import Tensor

from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.errors import ArchitectureError, IsobasinError, about
from isobasin.matching.whole.basis import StreamPairs, fit
from isobasin.matching.whole.shares import Shares
from isobasin.model import Blocks, TensorBlocks
from isobasin.symmetries.along import Along, Role, Stream
from isobasin.symmetries.stream import Basis, StreamGroup, centred, copies
from isobasin.symmetries.turning import Tensors, fold, maps, turn

# Float64 copies of both models that are held at once, about.
_COPIES = 5

# An axis along the stream, of the reference and of the model: names may differ.
Axes = Iterable[tuple[Along, Along]]

# The part of a tensor that both models have, as an index.
Part = tuple[slice, ...]


def gauged(blocks: Blocks, stream: Stream, device: str = "cpu") -> TensorBlocks:
    """All tensors along the stream and of all blocks in float64, as blocks that can be matched.

    Left out are the means that no LayerNorm passes on, of queries and keys too, and the mean row of a router that may
    be shifted.
    """
    tensors = blocks.double(sorted(_names(blocks, stream)), device)
    with about(blocks.name):
        tensors = fold(stream, tensors)
    if stream.group.basis is Basis.centred:
        _centre(stream, tensors)
    for block in blocks.specification.attention:
        if block.group.means:
            tensors |= block.centred(tensors)
    for block in blocks.feedforwards():
        if isinstance(block, ExpertsBlock) and block.group.shift:
            for name in (block.router.weight, block.router.bias):
                if name is not None:
                    tensors[name] = tensors[name] - tensors[name].mean(0)
    # A residual stream is looked for once, in the model itself.
    specification = replace(blocks.specification, feedforwards=blocks.feedforwards(), stream=None)
    return TensorBlocks(blocks.name, tensors, specification)


def _names(blocks: Blocks, stream: Stream) -> set[str]:
    """Every tensor along a stream or in a block."""
    return stream.names() | {name for block in blocks.blocks() for name in block.shapes()}


def _centre(stream: Stream, tensors: Tensors) -> None:
    """Leave out what no LayerNorm passes on: the mean of what writes, and of what reads."""
    items = list(stream.along)
    for norm in stream.norms:
        items += norm.scaled if norm.bias is None or norm.absorbed else norm.writers
    for item in items:
        tensors[item.tensor] = centred(tensors[item.tensor], item.axis, stream.group.width)


@dataclass(frozen=True)
class Pair:
    """Two folded models whose streams run through alike tensors.

    Attributes:
        a, b: Reference and model, as they were opened.
        streams: Their residual streams.
        along: Every axis along them.
        parts: What of every tensor along them both models have, by the reference's names.
        shares: How much every tensor counts.
        folded: Both in float64, folded, their writers evened by the shares, as blocks that can be matched.
        device: Where they are.
    """

    a: Blocks
    b: Blocks
    streams: tuple[Stream, Stream]
    along: tuple[tuple[Along, Along], ...]
    parts: Mapping[str, Part]
    shares: Shares
    folded: tuple[TensorBlocks, TensorBlocks]
    device: str

    @classmethod
    def of(cls, a: Blocks, b: Blocks, *, keep_gains: bool = False, device: str = "cpu") -> Pair:
        """Fold two models.

        Raises:
            ArchitectureError: Their streams are not alike, or nothing is known of them.
            IsobasinError: They don't fit in memory.
        """
        streams = a.stream(keep_gains=keep_gains), b.stream(keep_gains=keep_gains)
        check_alike(*streams)
        _check_memory(a, b, streams)
        along = tuple(zip(*(stream.axes() for stream in streams), strict=True))
        folded = gauged(a, streams[0], device), gauged(b, streams[1], device)
        parts = _common(along, folded[0].tensors, folded[1].tensors)
        shares = Shares.of(folded[0], {x for x, _ in _compared(along, *folded)})
        return cls(a, b, streams, along, parts, shares, (shares.evened(folded[0]), shares.evened(folded[1])), device)

    @cached_property
    def apart(self) -> float:
        """The squared distance of the folded models as they are."""
        return self.squares(self.folded[1].tensors)

    @property
    def unlike(self) -> int:
        """How many tensors along the streams have other shapes in the two models."""
        reference, model = (blocks.tensors for blocks in self.folded)
        return len({y.tensor for x, y in self.along if reference[x.tensor].shape != model[y.tensor].shape})

    @property
    def group(self) -> StreamGroup:
        """The streams' group."""
        return self.streams[1].group

    def turned(self, matrix: Tensor) -> TensorBlocks:
        """The folded model in another basis."""
        model = self.folded[1]
        return replace(model, tensors=turn(self.streams[1], maps(self.group, matrix), model.tensors))

    def squares(self, moved: Mapping[str, Tensor]) -> float:
        """The squared distance of the reference and a moved model, every tensor by its share."""
        weights = self.shares.weights
        return math.fsum(weights[x] ** 2 * gap for x, gap in self._gaps(moved))

    def distance(self, moved: Mapping[str, Tensor]) -> float:
        """The Frobenius distance of the reference and a moved model, all tensors as they are."""
        factors = self.shares.factors(self.folded[0])
        return math.sqrt(math.fsum(gap / factors.get(x, 1.0) ** 2 for x, gap in self._gaps(moved)))

    def _gaps(self, moved: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
        reference, outside = self.folded[0].tensors, {x.tensor for x, _ in self.along} - self.parts.keys()
        for x, y in self.names:
            if x not in outside:
                part = self.parts.get(x, ())
                yield x, float((reference[x][part] - moved[y][part]).square().sum())

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """The tensors of either model that belong together, each once."""
        return list(_compared(self.along, *self.folded))

    def outer(self) -> Axes:
        """The axes outside all blocks: of embeddings, and of the readouts."""
        inside = {name for block in self.folded[0].blocks() for name in block.shapes()}
        return [(x, y) for x, y in self.along if x.tensor not in inside]

    def fitted(self, along: Axes, moved: Mapping[str, Tensor]) -> Tensor:
        """The best map of the stream for a model whose blocks are moved already, looking at some axes."""
        found: dict[Role, list[tuple[Tensor, Tensor]]] = {role: [] for role in Role}
        for x, y in along:
            if x.tensor in self.parts:
                part, weight = self.parts[x.tensor], self.shares.weights[x.tensor]
                pair = (t[part] * weight for t in (self.folded[0].tensors[x.tensor], moved[y.tensor]))
                ours, theirs = (
                    torch.movedim(copies(t, x.axis, self.group.width), x.axis + 1, 0).flatten(1) for t in pair
                )
                found[x.role].append((ours, theirs))
        return fit(self.group, StreamPairs(found[Role.vector], found[Role.covector], found[Role.gain]))


def _common(along: Axes, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Part]:
    """Of every tensor along two streams what both have of it, by the reference's name.

    Tables of tokens or positions may differ in length: their first rows are the same things. Other tensors of unlike
    shapes, of labels for example or of the places in images of another size, are not there: nothing says which of
    their rows belong together.
    """
    found: dict[str, Part] = {}
    for x, y in along:
        shapes = a[x.tensor].shape, b[y.tensor].shape
        if shapes[0] == shapes[1] or x.table:
            found[x.tensor] = tuple(slice(min(sizes)) for sizes in zip(*shapes, strict=True))
    return found


def _compared(along: Axes, a: TensorBlocks, b: TensorBlocks) -> dict[tuple[str, str], None]:
    """The tensors of either model that belong together."""
    found = {(x.tensor, y.tensor): None for x, y in along}
    for ours, theirs in zip(a.blocks(), b.blocks(), strict=True):
        for name in ("weight", "bias"):
            for role in ours.projections:
                x, y = (getattr(block.projections[role], name) for block in (ours, theirs))
                if x is not None:
                    found[x, y] = None
    return found


def check_alike(a: Stream, b: Stream) -> None:
    """Refuse two streams that don't run through alike tensors.

    Raises:
        ArchitectureError: Their groups differ, or what lies along them.
    """
    if (a.group.width, a.group.basis) != (b.group.width, b.group.basis):
        raise ArchitectureError(f"reference's residual stream has group {a.group}, model's {b.group}")
    shapes = [([(x.axis, x.role) for x in s.axes()], [norm.absorbed for norm in s.norms]) for s in (a, b)]
    if shapes[0] != shapes[1]:
        raise ArchitectureError("the residual streams run through different tensors: give two models with one head")


def _check_memory(a: Blocks, b: Blocks, streams: tuple[Stream, Stream]) -> None:
    """Refuse models that don't fit in memory in float64, before the system ends the program."""
    values = sum(blocks.size(x) for blocks, stream in zip((a, b), streams, strict=True) for x in _names(blocks, stream))
    needed = 8 * _COPIES // 2 * values
    free = psutil.virtual_memory().available
    if needed > free:
        raise IsobasinError(
            f"--scope model holds both models in float64: about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are "
            "free; use --scope block"
        )
