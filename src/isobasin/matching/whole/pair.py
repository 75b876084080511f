"""Two whole models in the gauge in which they are compared: normalisations folded, and free means left out.

There the total distance is a sum over tensors that each belong to a few factors of the group. Every tensor counts by
its share of the reference's, see `isobasin.matching.whole.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from torch import Tensor

from isobasin.errors import ArchitectureError
from isobasin.matching.products import squares
from isobasin.matching.whole.basis import StreamFit
from isobasin.matching.whole.folded import Folded
from isobasin.matching.whole.shares import Shares
from isobasin.model import Blocks
from isobasin.symmetries.along import Along, Stream
from isobasin.symmetries.stream import Basis, StreamGroup, rows
from isobasin.symmetries.turning import maps

# The axes of one tensor along the stream, of the reference and of the model: names may differ.
Axes = tuple[tuple[Along, Along], ...]

# A tensor's name in the reference, and its values there and in the model; None where one has no more rows.
Couple = tuple[str, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Apart:
    """How far apart two models are.

    Attributes:
        squares: The squared distance, every tensor by its share.
        distance: The Frobenius distance of all tensors as they are.
    """

    squares: float = 0.0
    distance: float = 0.0


@dataclass(frozen=True)
class Pair:
    """Two folded models whose streams run through alike tensors.

    They are read anew, block by block, whenever they are compared: nothing of them is kept but sums.

    Attributes:
        a, b: Reference and model, as they were opened.
        streams: Their residual streams.
        axes: The axes along them, by the reference's name of the tensor.
        names: The tensors of either model that belong together, each once.
        shares: How much every tensor counts.
        folded: Both folded, their writers evened by the shares, as blocks that can be matched.
        size: The squares of the reference's tensors, every one by its share.
        before: How far apart they are as they are.
        device: Where they are.
    """

    a: Blocks
    b: Blocks
    streams: tuple[Stream, Stream]
    axes: Mapping[str, Axes]
    names: tuple[tuple[str, str], ...]
    shares: Shares
    folded: tuple[Folded, Folded]
    size: float
    before: Apart
    device: str

    @classmethod
    def of(cls, a: Blocks, b: Blocks, *, keep_gains: bool = False, device: str = "cpu") -> Pair:
        """Fold two models.

        Raises:
            ArchitectureError: Their streams are not alike, or nothing is known of them.
        """
        streams = a.stream(keep_gains=keep_gains), b.stream(keep_gains=keep_gains)
        check_alike(*streams)
        axes: dict[str, Axes] = {}
        for x, y in zip(*(stream.axes() for stream in streams), strict=True):
            axes[x.tensor] = (*axes.get(x.tensor, ()), (x, y))
        ours, theirs = (Folded.of(each, s, device) for each, s in zip((a, b), streams, strict=True))
        names = tuple(_compared(axes, ours, theirs))
        plain = cls(a, b, streams, axes, names, Shares((), {}), (ours, theirs), 0.0, Apart(), device)
        sizes, gaps = dict.fromkeys((x for x, _ in names), 0.0), dict.fromkeys((x for x, _ in names), 0.0)
        for x, one, other in plain._couples(map(theirs.read, _shapes(theirs)), theirs):
            sizes[x] += 0.0 if one is None else squares(one)
            gaps[x] += plain._gap(x, one, other)
        shares = Shares.of(ours, sizes)
        factors = shares.factors(ours)
        sizes, gaps = ({x: y * factors.get(x, 1.0) ** 2 for x, y in each.items()} for each in (sizes, gaps))
        evened = replace(ours, factors=factors), replace(theirs, factors=shares.factors(theirs))
        shared = replace(plain, shares=shares, folded=evened)
        return replace(shared, size=shared._summed(sizes).squares, before=shared._summed(gaps))

    @property
    def unlike(self) -> int:
        """How many tensors along the streams have other shapes in the two models."""
        pairs = {y.tensor: x.tensor for axes in self.axes.values() for x, y in axes}
        return sum(self.a.shape(x) != self.b.shape(y) for y, x in pairs.items())

    @property
    def group(self) -> StreamGroup:
        """The streams' group."""
        return self.streams[1].group

    @property
    def loose(self) -> Pair:
        """The same where streams turn however gains and tied embeddings hold them: no move of the models."""
        return replace(self, streams=(_loose(self.streams[0]), _loose(self.streams[1])))

    def turned(self, matrix: Tensor) -> Folded:
        """The folded model in another basis."""
        return replace(self.folded[1], maps=maps(self.group, matrix))

    def compared(self, moved: Iterable[Mapping[str, Tensor]], turned: Folded) -> tuple[Apart, StreamFit]:
        """How far apart the reference and a moved model are, and what the best further map of the stream follows from.

        Args:
            moved: The tensors of every block of the model after its move, as they come.
            turned: The model before the moves of its blocks.
        """
        fit, gaps = StreamFit(self.group, self.device), dict.fromkeys((x for x, _ in self.names), 0.0)
        for x, ours, theirs in self._couples(moved, turned):
            gaps[x] += self._gap(x, ours, theirs)
            self._add(fit, x, ours, theirs)
        return self._summed(gaps), fit

    def outer(self) -> Tensor:
        """The best map of the stream by what lies outside all blocks: embeddings, and the readouts."""
        fit = StreamFit(self.group, self.device)
        for couple in self._outer(self.folded[1]):
            self._add(fit, *couple)
        return fit.best()

    def _couples(self, moved: Iterable[Mapping[str, Tensor]], turned: Folded) -> Iterator[Couple]:
        """All tensors that belong together, some rows of one at a time where it lies outside all blocks."""
        partners = {y: x for x, y in self.names}
        for tensors in moved:
            there = {partners.pop(y): tensor for y, tensor in tensors.items() if y in partners}
            yield from ((x, ours, there[x]) for x, ours in self.folded[0].read(there).items())
            del tensors, there  # not held while the next block is matched
        yield from self._outer(turned)

    def _outer(self, turned: Folded) -> Iterator[Couple]:
        """Those outside all blocks."""
        inside = {name for names in _shapes(self.folded[0]) for name in names}
        for x, y in self.names:
            if x not in inside:
                pieces = self.folded[0].pieces(x), turned.pieces(y)
                yield from ((x, *both) for both in zip_longest(*pieces))

    @cached_property
    def _apart(self) -> set[str]:
        """The tensors, by the reference's names, of which nothing says which of their rows belong together."""
        return {x for x, axes in self.axes.items() if not _common(axes, self.a, self.b)}

    def _gap(self, name: str, ours: Tensor | None, theirs: Tensor | None) -> float:
        """The squared distance of what both have of a tensor."""
        if ours is None or theirs is None or name in self._apart:
            return 0.0
        part = _part(ours, theirs)
        return squares(ours[part], theirs[part])

    def _add(self, fit: StreamFit, name: str, ours: Tensor | None, theirs: Tensor | None) -> None:
        """Add what both have of a tensor, by its share."""
        if ours is None or theirs is None or name in self._apart:
            return
        part, weight, width = _part(ours, theirs), self.shares.weights[name], self.group.width
        for item, _ in self.axes.get(name, ()):
            both = (rows(tensor[part], item.axis, width) for tensor in (ours, theirs))
            fit.add(item.role, *both, weight=weight)

    def _summed(self, gaps: Mapping[str, float]) -> Apart:
        """The sums over all tensors."""
        weights, factors = self.shares.weights, self.shares.factors(self.folded[0])
        squares = math.fsum(weights[x] ** 2 * gap for x, gap in gaps.items())
        distance = math.sqrt(math.fsum(gap / factors.get(x, 1.0) ** 2 for x, gap in gaps.items()))
        return Apart(squares, distance)


def _loose(stream: Stream) -> Stream:
    basis = Basis.centred if stream.centred else Basis.orthogonal
    return replace(stream, group=replace(stream.group, basis=basis))


def _shapes(blocks: Blocks) -> Iterator[Iterable[str]]:
    """The tensors of every block."""
    return (block.shapes() for block in blocks.blocks())


def _part(ours: Tensor, theirs: Tensor) -> tuple[slice, ...]:
    """What both have of a tensor, as an index: its first rows, where one is longer."""
    return tuple(slice(min(sizes)) for sizes in zip(ours.shape, theirs.shape, strict=True))


def _common(axes: Axes, a: Blocks, b: Blocks) -> bool:
    """Whether two tensors have something in common.

    Tables of tokens or positions may differ in length: their first rows are the same things. Other tensors of unlike
    shapes, of labels for example or of the places in images of another size, have nothing that is known.
    """
    return any(a.shape(x.tensor) == b.shape(y.tensor) or x.table for x, y in axes)


def _compared(axes: Mapping[str, Axes], a: Blocks, b: Blocks) -> dict[tuple[str, str], None]:
    """The tensors of either model that belong together."""
    found = {(x.tensor, y.tensor): None for some in axes.values() for x, y in some}
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
        tied = a.group.width == b.group.width and a.group.basis.discrete != b.group.basis.discrete
        raise ArchitectureError(
            f"reference's residual stream has group {a.group}, model's {b.group}"
            + (": if the head of one alone is its embedding, --untie takes that apart" if tied else "")
        )
    shapes = [([(x.axis, x.role) for x in s.axes()], [norm.absorbed for norm in s.norms]) for s in (a, b)]
    if shapes[0] != shapes[1]:
        raise ArchitectureError(
            "the residual streams run through different tensors: give two models with one head; if that of one "
            "alone is its embedding, --untie takes it apart"
        )
