"""Two whole models in the gauge in which they are compared.

Normalisations are folded into their readers, and what LayerNorm subtracts is left out. There the total distance is a
sum over tensors that each belong to a few factors of the group. Every tensor counts by its share of the reference's,
see `isobasin.verbs.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import psutil
import torch
from torch import Tensor

from isobasin.alignment.stream import Turned
from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.errors import ArchitectureError, IsobasinError
from isobasin.matching.stream import StreamPairs, fit
from isobasin.model import Blocks, TensorBlocks
from isobasin.symmetries.along import Role, Stream, role_maps
from isobasin.symmetries.stream import Basis, StreamGroup, centred, copies, identity, move_axis
from isobasin.verbs.shares import Shares

# Float64 copies of both models that are held at once, about.
_COPIES = 5


@dataclass(frozen=True)
class Slot:
    """One axis along the stream: which tensor of either model, and how it moves; the models' names may differ."""

    reference: str
    model: str
    axis: int
    role: Role
    table: bool = False


Tensors = dict[str, Tensor]

# The part of a tensor that both models have, as an index.
Part = tuple[slice, ...]


def fold(blocks: Blocks, stream: Stream, device: str = "cpu") -> Tensors:
    """All tensors along the stream and of all blocks in float64, normalisations folded and means left out.

    Those are the means that no LayerNorm passes on, of queries and keys too, and the mean row of a router that may be
    shifted.
    """
    # Folded is what is left where gains are 1 and biases 0: a move of the stream that keeps its basis.
    turned = Turned(blocks, stream, identity(stream.group, device=device), device)
    gone = {norm.gain for norm in stream.norms} | {norm.bias for norm in stream.norms if norm.absorbed}
    names = dict.fromkeys((*stream.ordered(), *sorted(_names(blocks, stream))))
    tensors = turned.read(name for name in names if name not in gone)
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
    return tensors


def _names(blocks: Blocks, stream: Stream) -> set[str]:
    """Every tensor along a stream or in a block."""
    return stream.names() | {name for block in blocks.blocks() for name in block.shapes()}


def _centre(stream: Stream, tensors: Tensors) -> None:
    """Leave out what no LayerNorm passes on: the mean of what writes, and of what reads."""
    for item in (*stream.along, *(writer for norm in stream.norms for writer in norm.writers)):
        tensors[item.tensor] = centred(tensors[item.tensor], item.axis, stream.group.width)
    for norm in stream.norms:
        if norm.bias is None or norm.absorbed:
            for reader in norm.readers:
                tensors[reader.weight] = centred(tensors[reader.weight], reader.axis, stream.group.width)


def slots(a: Stream, b: Stream) -> list[Slot]:
    """Every axis along the streams of two models that are alike, folded normalisations and all."""
    found = [Slot(x.tensor, y.tensor, x.axis, x.role, x.table) for x, y in zip(a.along, b.along, strict=True)]
    for ours, theirs in zip(a.norms, b.norms, strict=True):
        for x, y in zip(ours.readers, theirs.readers, strict=True):
            found.append(Slot(x.weight, y.weight, x.axis, Role.covector, x.table))
        found += [Slot(x.tensor, y.tensor, x.axis, x.role) for x, y in zip(ours.writers, theirs.writers, strict=True)]
        if ours.bias is not None and theirs.bias is not None and not ours.absorbed:
            found.append(Slot(ours.bias, theirs.bias, 0, Role.vector))
    return found


def turn(stream: Stream, along: Iterable[Slot], tensors: Mapping[str, Tensor], matrix: Tensor) -> Tensors:
    """A folded model in another basis."""
    maps = role_maps(stream.group, matrix)
    new = dict(tensors)
    for slot in along:
        new[slot.model] = move_axis(maps[slot.role], new[slot.model], slot.axis)
    return new


def common(along: Iterable[Slot], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Part]:
    """Of every tensor along two streams what both have of it, by the reference's name.

    Tables of tokens or positions may differ in length: their first rows are the same things. Other tensors of unlike
    shapes, of labels for example or of the places in images of another size, are not there: nothing says which of
    their rows belong together.
    """
    found: dict[str, Part] = {}
    for slot in along:
        shapes = a[slot.reference].shape, b[slot.model].shape
        if shapes[0] == shapes[1] or slot.table:
            found[slot.reference] = tuple(slice(min(sizes)) for sizes in zip(*shapes, strict=True))
    return found


def pairs(
    width: int,
    along: Iterable[Slot],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    weights: Mapping[str, float],
    parts: Mapping[str, Part],
) -> StreamPairs:
    """What the stream's map is fitted to: what both models have of every tensor, by its weight."""

    def rows(tensor: Tensor, axis: int) -> Tensor:
        return torch.movedim(copies(tensor, axis, width), axis + 1, 0).flatten(1)

    found: dict[Role, list[tuple[Tensor, Tensor]]] = {role: [] for role in Role}
    for slot in along:
        if slot.reference not in parts:
            continue
        part, weight = parts[slot.reference], weights[slot.reference]
        ours, theirs = (t[part] * weight for t in (a[slot.reference], b[slot.model]))
        found[slot.role].append((rows(ours, slot.axis), rows(theirs, slot.axis)))
    return StreamPairs(found[Role.vector], found[Role.covector], found[Role.gain])


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
    along: tuple[Slot, ...]
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
        along = tuple(slots(*streams))
        folded = [_as_blocks(model, fold(model, stream, device)) for model, stream in zip((a, b), streams, strict=True)]
        parts = common(along, folded[0].tensors, folded[1].tensors)
        shares = Shares.of(folded[0], {x for x, _ in _compared(along, folded)})
        return cls(a, b, streams, along, parts, shares, (shares.evened(folded[0]), shares.evened(folded[1])), device)

    @cached_property
    def apart(self) -> float:
        """The squared distance of the folded models as they are."""
        return self.squares(self.folded[1].tensors)

    @property
    def unlike(self) -> int:
        """How many tensors along the streams have other shapes in the two models."""
        reference, model = (blocks.tensors for blocks in self.folded)
        return len({slot.model for slot in self.along if reference[slot.reference].shape != model[slot.model].shape})

    @property
    def group(self) -> StreamGroup:
        """The streams' group."""
        return self.streams[1].group

    def turned(self, matrix: Tensor) -> TensorBlocks:
        """The folded model in another basis."""
        model = self.folded[1]
        return replace(model, tensors=turn(self.streams[1], self.along, model.tensors, matrix))

    def squares(self, moved: Mapping[str, Tensor]) -> float:
        """The squared distance of the reference and a moved model, every tensor by its share."""
        weights = self.shares.weights
        return math.fsum(weights[x] ** 2 * gap for x, gap in self._gaps(moved))

    def distance(self, moved: Mapping[str, Tensor]) -> float:
        """The Frobenius distance of the reference and a moved model, all tensors as they are."""
        factors = self.shares.factors(self.folded[0])
        return math.sqrt(math.fsum(gap / factors.get(x, 1.0) ** 2 for x, gap in self._gaps(moved)))

    def _gaps(self, moved: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
        reference, outside = self.folded[0].tensors, {slot.reference for slot in self.along} - self.parts.keys()
        for x, y in self.names:
            if x not in outside:
                part = self.parts.get(x, ())
                yield x, float((reference[x][part] - moved[y][part]).square().sum())

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """The tensors of either model that belong together, each once."""
        return list(_compared(self.along, self.folded))

    def outer(self) -> list[Slot]:
        """The axes outside all blocks: embeddings, and the heads that outputs are read with."""
        inside = {name for block in self.folded[0].blocks() for name in block.shapes()}
        return [slot for slot in self.along if slot.reference not in inside]

    def fitted(self, along: Iterable[Slot], moved: Mapping[str, Tensor]) -> Tensor:
        """The best map of the stream for a model whose blocks are moved already, looking at some axes."""
        tensors, weights = self.folded[0].tensors, self.shares.weights
        return fit(self.group, pairs(self.group.width, along, tensors, moved, weights, self.parts))


def _compared(along: Iterable[Slot], models: Sequence[TensorBlocks]) -> dict[tuple[str, str], None]:
    """The tensors of either model that belong together."""
    found = {(slot.reference, slot.model): None for slot in along}
    for ours, theirs in zip(*(blocks.blocks() for blocks in models), strict=True):
        for name in ("weight", "bias"):
            for role in ours.projections:
                x, y = (getattr(block.projections[role], name) for block in (ours, theirs))
                if x is not None:
                    found[x, y] = None
    return found


def _as_blocks(blocks: Blocks, tensors: Tensors) -> TensorBlocks:
    """Tensors with the meaning of some blocks; a residual stream is looked for once, in the model itself."""
    specification = replace(blocks.specification, feedforwards=blocks.feedforwards(), stream=None)
    return TensorBlocks(blocks.name, tensors, specification)


def check_alike(a: Stream, b: Stream) -> None:
    """Refuse two streams that don't run through alike tensors.

    Raises:
        ArchitectureError: Their groups differ, or what lies along them.
    """
    if (a.group.width, a.group.basis) != (b.group.width, b.group.basis):
        raise ArchitectureError(f"reference's residual stream has group {a.group}, model's {b.group}")
    shapes = [
        ([(x.axis, x.role) for x in s.along], [(len(n.readers), len(n.writers), n.absorbed) for n in s.norms])
        for s in (a, b)
    ]
    if shapes[0] != shapes[1]:
        raise ArchitectureError("the residual streams run through different tensors: give two models with one head")


def _check_memory(a: Blocks, b: Blocks, streams: tuple[Stream, Stream]) -> None:
    """Refuse models that don't fit in memory in float64, before the system ends the program."""
    needed = 0
    for blocks, stream in zip((a, b), streams, strict=True):
        needed += 8 * _COPIES // 2 * sum(blocks.size(name) for name in _names(blocks, stream))
    free = psutil.virtual_memory().available
    if needed > free:
        raise IsobasinError(
            f"--scope model holds both models in float64: about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are "
            "free; use --scope block"
        )
