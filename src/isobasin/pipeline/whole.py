"""Matching whole models: the residual stream and all blocks together, by coordinate descent.

Both models are brought to the gauge in which normalisations are folded into their readers, and in which what LayerNorm
subtracts is left out. There the total distance is a sum over tensors that each belong to a few factors of the group;
with the blocks fixed the stream's map is one Procrustes problem, and with the map fixed every block is matched as it is
alone (arXiv 2606.17830, section 3; the residual map is this library's). Every tensor counts by its share of the
reference's, see `isobasin.pipeline.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import psutil
import torch
from torch import Tensor

from isobasin.alignment import Alignment, ResidualAlignment, ResidualStatistics
from isobasin.alignment.stream import gains_of, offset
from isobasin.architectures.blocks import ExpertsSite
from isobasin.architectures.residual import Residual, Role, role_maps
from isobasin.errors import ArchitectureError, IsobasinError, VerificationError
from isobasin.matching.residual import StreamPairs, fit
from isobasin.model import Blocks, TensorBlocks
from isobasin.pipeline.settings import Calibration, Matching, Objective, Running
from isobasin.pipeline.shares import Shares
from isobasin.symmetries.residual import (
    Basis,
    ResidualElement,
    ResidualGroup,
    centred,
    contract,
    copies,
    least_gain,
    move_axis,
    scale_axis,
)
from isobasin.verification import Verification, compare_blocks, compare_feedforward, compare_tensors

# A sweep that lowers the squared distance by a smaller share than this is the last.
_FALL = 1e-3
_SWEEPS = 100
# Below these shares of the models' squared distance a sweep has only rounding to gain, and another start nothing.
_ROUNDING = 1e-15
_FOUND = 1e-10
# Float64 copies of both models that are held at once, about.
_COPIES = 5


@dataclass(frozen=True)
class Slot:
    """One axis along the stream: which tensor of either model, and how it moves; the models' names may differ."""

    reference: str
    model: str
    axis: int
    role: Role


Tensors = dict[str, Tensor]


def fold(blocks: Blocks, stream: Residual, device: str = "cpu") -> Tensors:
    """All tensors along the stream and of all blocks in float64, normalisations folded and means left out.

    Those are the means that no LayerNorm passes on, of queries and keys too, and the mean row of a router that may be
    shifted.
    """
    own = blocks.double(sorted(_names(blocks, stream)), device)
    tensors = dict(own)
    for norm in stream.norms:
        gain = norm.gains(own)
        bias = None if norm.bias is None else own[norm.bias]
        for reader in norm.readers:
            tensors[reader.weight] = scale_axis(gain, own[reader.weight], reader.axis)
            if bias is not None and norm.absorbed and reader.bias is not None:
                tensors[reader.bias] = own[reader.bias] + contract(bias, own[reader.weight], reader.axis)
        for writer in norm.writers:
            tensors[writer.tensor] = scale_axis(gain, own[writer.tensor], writer.axis)
        del tensors[norm.gain]
        if norm.bias is not None and bias is not None:
            del tensors[norm.bias]
            if not norm.absorbed:
                tensors[norm.bias] = offset(norm, gain, bias, blocks.name)
    if stream.group.basis is Basis.centred:
        _centre(stream, tensors)
    for site in blocks.specification.sites:
        if site.group.means:
            tensors |= site.centred(tensors)
    for site in blocks.feedforwards():
        if isinstance(site, ExpertsSite) and site.group.shift:
            for name in (site.router.weight, site.router.bias):
                if name is not None:
                    tensors[name] = tensors[name] - tensors[name].mean(0)
    return tensors


def _names(blocks: Blocks, stream: Residual) -> set[str]:
    """Every tensor along a stream or in a block."""
    return stream.names() | {name for site in blocks.sites() for name in site.shapes()}


def _centre(stream: Residual, tensors: Tensors) -> None:
    """Leave out what no LayerNorm passes on: the mean of what writes, and of what reads."""
    for item in (*stream.along, *(writer for norm in stream.norms for writer in norm.writers)):
        tensors[item.tensor] = centred(tensors[item.tensor], item.axis, stream.group.width)
    for norm in stream.norms:
        if norm.bias is None or norm.absorbed:
            for reader in norm.readers:
                tensors[reader.weight] = centred(tensors[reader.weight], reader.axis, stream.group.width)


def slots(a: Residual, b: Residual) -> list[Slot]:
    """Every axis along the streams of two models that are alike, folded normalisations and all."""
    found = [Slot(x.tensor, y.tensor, x.axis, x.role) for x, y in zip(a.along, b.along, strict=True)]
    for ours, theirs in zip(a.norms, b.norms, strict=True):
        for x, y in zip(ours.readers, theirs.readers, strict=True):
            found.append(Slot(x.weight, y.weight, x.axis, Role.covector))
        found += [Slot(x.tensor, y.tensor, x.axis, x.role) for x, y in zip(ours.writers, theirs.writers, strict=True)]
        if ours.bias is not None and theirs.bias is not None and not ours.absorbed:
            found.append(Slot(ours.bias, theirs.bias, 0, Role.vector))
    return found


def turn(stream: Residual, along: Iterable[Slot], tensors: Mapping[str, Tensor], matrix: Tensor) -> Tensors:
    """A folded model in another basis."""
    maps = role_maps(stream.group, matrix)
    new = dict(tensors)
    for slot in along:
        new[slot.model] = move_axis(maps[slot.role], new[slot.model], slot.axis)
    return new


def pairs(
    width: int,
    along: Iterable[Slot],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    weights: Mapping[str, float],
) -> StreamPairs:
    """What the stream's map is fitted to, every tensor by its weight."""

    def rows(tensor: Tensor, axis: int) -> Tensor:
        return torch.movedim(copies(tensor, axis, width), axis + 1, 0).flatten(1)

    found: dict[Role, list[tuple[Tensor, Tensor]]] = {role: [] for role in Role}
    for slot in along:
        ours, theirs = (t * weights[slot.reference] for t in (a[slot.reference], b[slot.model]))
        found[slot.role].append((rows(ours, slot.axis), rows(theirs, slot.axis)))
    return StreamPairs(found[Role.vector], found[Role.covector], found[Role.gain])


@dataclass(frozen=True)
class Pair:
    """Two folded models whose streams run through alike tensors.

    Attributes:
        a, b: Reference and model, as they were opened.
        streams: Their residual streams.
        along: Every axis along them.
        shares: How much every tensor counts.
        folded: Both in float64, folded, their writers evened by the shares, as blocks that can be matched.
        device: Where they are.
    """

    a: Blocks
    b: Blocks
    streams: tuple[Residual, Residual]
    along: tuple[Slot, ...]
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
        streams = a.residual(keep_gains=keep_gains), b.residual(keep_gains=keep_gains)
        _check_alike(*streams)
        _check_memory(a, b, streams)
        along = tuple(slots(*streams))
        folded = [_as_blocks(model, fold(model, stream, device)) for model, stream in zip((a, b), streams, strict=True)]
        shares = Shares.of(folded[0], {x for x, _ in _compared(along, folded)})
        return cls(a, b, streams, along, shares, (shares.evened(folded[0]), shares.evened(folded[1])), device)

    @cached_property
    def apart(self) -> float:
        """The squared distance of the folded models as they are."""
        return self.squares(self.folded[1].tensors)

    @property
    def group(self) -> ResidualGroup:
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
        reference = self.folded[0].tensors
        for x, y in self.names:
            yield x, float((reference[x] - moved[y]).square().sum())

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """The tensors of either model that belong together, each once."""
        return list(_compared(self.along, self.folded))

    def outer(self) -> list[Slot]:
        """The axes outside all blocks: embeddings, and the heads that outputs are read with."""
        inside = {name for site in self.folded[0].sites() for name in site.shapes()}
        return [slot for slot in self.along if slot.reference not in inside]

    def fitted(self, along: Iterable[Slot], moved: Mapping[str, Tensor]) -> Tensor:
        """The best map of the stream for a model whose blocks are moved already, looking at some axes."""
        return fit(self.group, pairs(self.group.width, along, self.folded[0].tensors, moved, self.shares.weights))


def _compared(along: Iterable[Slot], models: Sequence[TensorBlocks]) -> dict[tuple[str, str], None]:
    """The tensors of either model that belong together."""
    found = {(slot.reference, slot.model): None for slot in along}
    for ours, theirs in zip(*(blocks.sites() for blocks in models), strict=True):
        for name in ("weight", "bias"):
            for role in ours.projections:
                x, y = (getattr(site.projections[role], name) for site in (ours, theirs))
                if x is not None:
                    found[x, y] = None
    return found


def _as_blocks(blocks: Blocks, tensors: Tensors) -> TensorBlocks:
    """Tensors with the meaning of some blocks; a residual stream is looked for once, in the model itself."""
    specification = replace(blocks.specification, feedforwards=blocks.feedforwards(), residual=None)
    return TensorBlocks(blocks.name, tensors, specification)


def _check_alike(a: Residual, b: Residual) -> None:
    if a.group != b.group:
        raise ArchitectureError(f"reference's residual stream has group {a.group}, model's {b.group}")
    shapes = [
        ([(x.axis, x.role) for x in s.along], [(len(n.readers), len(n.writers), n.absorbed) for n in s.norms])
        for s in (a, b)
    ]
    if shapes[0] != shapes[1]:
        raise ArchitectureError("the residual streams run through different tensors: give two models with one head")


def _check_memory(a: Blocks, b: Blocks, streams: tuple[Residual, Residual]) -> None:
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


@dataclass(frozen=True)
class Descent:
    """Where coordinate descent from one start ended.

    Attributes:
        start: What it is called.
        matrix: The stream's map.
        blocks: The elements of all blocks after it.
        moved: The folded model's tensors after all moves.
        squares: The squared distance.
        sweeps: How often all factors were matched.
    """

    start: str
    matrix: Tensor
    blocks: Alignment
    moved: Tensors
    squares: float
    sweeps: int


Match = Callable[[Blocks, Blocks], Alignment]


def descend(pair: Pair, start: str, matrix: Tensor, solvers: Sequence[Match]) -> Descent:
    """Match blocks and stream in turn until the distance stops falling, with one solver of blocks after the other.

    Args:
        pair: The folded models.
        start: What the start is called.
        matrix: The stream's map to begin with.
        solvers: Each matches all blocks of two models; the last one's blocks are the result's.
    """
    sweeps = 0
    best: Descent | None = None
    for match in solvers:
        best = None
        while best is None or sweeps < _SWEEPS:
            sweeps += 1
            found = _swept(pair, start, matrix, match, sweeps)
            if best is not None and not found.squares < best.squares * (1 - _FALL):
                break
            best = found
            if found.squares <= _ROUNDING * pair.apart:
                break
            matrix = best.matrix @ pair.fitted(pair.along, best.moved)
        matrix = best.matrix
    assert best is not None
    return best


def _swept(pair: Pair, start: str, matrix: Tensor, match: Match, sweeps: int) -> Descent:
    """All blocks matched once, in some basis of the stream."""
    turned = pair.turned(matrix)
    found = match(pair.folded[0], turned)
    moved = dict(turned.tensors)
    for tensors in found.moved(turned, pair.device):
        moved |= tensors
    return Descent(start, matrix, found, moved, pair.squares(moved), sweeps)


def starts(pair: Pair) -> dict[str, Tensor]:
    """Maps of the stream to begin with, by name."""
    identity = torch.eye(pair.group.width, dtype=torch.float64, device=pair.device)
    return {"embeddings": pair.fitted(pair.outer(), pair.folded[1].tensors), "identity": identity}


def match_whole(
    a: Blocks,
    b: Blocks,
    solvers: Sequence[Match],
    matching: Matching,
    running: Running,
    calibration: Calibration | None = None,
) -> Alignment:
    """Match two whole models.

    Args:
        a: The reference.
        b: The model to move.
        solvers: Match all blocks of two folded models, quicker ones first.
        matching: How whole models are matched.
        running: Where.
        calibration: Further starts, and which end is best; without it that is the nearest. Where activations are
            compared, the start from them is the stream's best map, and one sweep matches the blocks.

    Returns:
        The alignment of the best start. The moved model has the reference's gains and biases of normalisations, so
        that a straight line between the two files is one between the folded models.
    """
    pair = Pair.of(a, b, keep_gains=matching.keep_gains, device=running.device)
    ends: list[Descent] = []
    seen = {} if calibration is None else calibration.starts(a, b, pair.streams[1])
    once = bool(seen) and matching.objective is Objective.activations
    options = seen if once else starts(pair) | seen
    for done, (name, matrix) in enumerate(options.items()):
        running.progress("matching", done, len(options))
        if calibration is not None:
            # The nearest map isn't the best one: the start's own, with blocks matched once, may leave a lower loss.
            ends.append(_swept(pair, name, matrix, solvers[-1], 1))
        if not once:
            ends.append(descend(pair, name, matrix, solvers))
        if ends[-1].squares <= _FOUND * pair.apart:
            break
    running.progress("matching", len(options), len(options))
    found, best = _best(pair, ends, matching, calibration)
    return replace(found, verified=_check(pair, best, found)) if running.verify else found


def _best(
    pair: Pair, ends: Sequence[Descent], matching: Matching, calibration: Calibration | None
) -> tuple[Alignment, Descent]:
    """The end that is kept, as an alignment."""
    if calibration is None:
        ends = [min(ends, key=lambda end: end.squares)]
    made = [replace(_unshifted(end.blocks), residual=_entry(pair, end, matching.keep_gains)) for end in ends]
    scores = [0.0] if calibration is None else calibration.scores(pair.a, pair.b, made)
    best = min(range(len(ends)), key=scores.__getitem__)
    return made[best], ends[best]


def _unshifted(blocks: Alignment) -> Alignment:
    """Blocks whose routers aren't shifted: a shift is a vector of the stream, and wouldn't turn with it."""
    entries = [
        replace(entry, element=replace(entry.element, shift=torch.zeros_like(entry.element.shift)))
        for entry in blocks.feedforward
    ]
    return replace(blocks, feedforward=tuple(entries))


def _check(pair: Pair, end: Descent, found: Alignment) -> Verification:
    """Make the move on the model itself and fold what comes out: nothing but rounding may differ from the descent's.

    Raises:
        VerificationError: The move changes the function.
    """
    tensors = pair.b.double(pair.streams[1].names(), pair.device)
    for moved in found.moved(pair.b, pair.device):
        tensors |= moved
    folded = fold(replace(pair.folded[1], tensors=tensors), pair.streams[1], pair.device)
    again = pair.shares.evened(replace(pair.folded[1], tensors=folded)).tensors
    turned = pair.turned(end.matrix)
    checks = [compare_tensors({y: end.moved[y] for _, y in pair.names}, again)]
    for site in turned.specification.sites:
        checks.append(compare_blocks(site.group, site.read(turned.tensors), site.read(again)))
    for site in turned.specification.feedforwards:
        checks.append(compare_feedforward(site, site.read(turned.tensors), site.read(again)))
    worst = max(checks, key=lambda check: check.max_rel)
    if not worst.equal:
        raise VerificationError(f"the moved model differs by {worst.max_rel:.2g} relative: lower --max-condition")
    return worst


def _entry(pair: Pair, end: Descent, keep_gains: bool) -> ResidualAlignment:
    """The residual stream's part of an alignment."""
    gains, biases = gains_of(pair.a, pair.streams[0], pair.device)
    own = gains_of(pair.b, pair.streams[1], pair.device)
    limit = least_gain(gains)
    small = gains.abs() < limit
    element = ResidualElement(end.matrix, torch.where(small, limit.expand_as(gains), gains), biases, *own)
    statistics = ResidualStatistics(
        pair.distance(pair.folded[1].tensors), pair.distance(end.moved), end.start, end.sweeps, int(small.sum())
    )
    return ResidualAlignment(pair.group, element.to("cpu"), keep_gains, statistics)
