"""Coordinate descent over two whole models: the residual stream and all blocks in turn.

With the blocks fixed the stream's map is one Procrustes problem, and with the map fixed every block is matched as it is
alone (arXiv 2606.17830, section 3; the residual map is this library's). A sweep reads both models once: what the next
map follows from is summed up as blocks are matched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from isobasin.matching.whole.basis import StreamFit
from isobasin.matching.whole.pair import Apart, Pair
from isobasin.model import Blocks
from isobasin.symmetries.turning import Tensors

# A sweep that lowers the squared distance by a smaller share than this is the last.
_FALL = 1e-3
_SWEEPS = 100
# Nor is a sweep made of which the stream's map promises too little. Of 24 pairs of trained models a sweep fell by up to
# 1.8 times what the map before it did by itself; where coordinates only change places by up to 98 times.
_TIMES, _TIMES_IN_PLACES = 2, 100
# By this share of the models' squares that may be wrong.
_BLUR = 1e-9
# A start that is further above its rival than so many of its last falls is given up: these shrink with every sweep, and
# of models trained apart what was still to come was up to four times the last.
_HOPE = 6
# Below this share of the models' squared distance a sweep has only rounding to gain, by the coarsest stored type.
_ROUNDING, _ROUNDING_OF_DOUBLE = 1e-15, 1e-22

Found = TypeVar("Found")

# Matches all blocks of two models, and hands out those of the second as they are moved; at the end what was found. What
# an earlier solver found of the same two may be given.
Match = Callable[[Blocks, Blocks, Found | None], Generator[Tensors, None, Found]]


@dataclass(frozen=True)
class Descent(Generic[Found]):
    """Where a descent ended.

    Attributes:
        start: Where it began: "embeddings", "rotation", "identity".
        matrix: The map of the stream.
        blocks: The moves of the blocks in its basis.
        after: How far apart the reference and the model are after both moves.
        fit: What the best further map of the stream follows from.
        sweeps: How often all factors were matched.
    """

    start: str
    matrix: Tensor
    blocks: Found
    after: Apart
    fit: StreamFit
    sweeps: int

    def onwards(self) -> tuple[Tensor, float]:
        """The best map of the stream with these blocks, and by how much it lowers the squared distance by itself."""
        step = self.fit.best()
        return self.matrix @ step, self.fit.fall(step)


def descend(pair: Pair, start: str, matrix: Tensor, match: Match[Found], rival: Apart | None = None) -> Descent[Found]:
    """Match blocks and stream in turn until the distance stops falling.

    Args:
        pair: The folded models.
        start: What the start is called.
        matrix: The stream's map to begin with.
        match: Matches all blocks of two models.
        rival: Where a descent from another start ended: if this one has no hope to come as near, it isn't followed any
            further.
    """
    return _followed(pair, swept(pair, start, matrix, match), match, rival)


def continued(pair: Pair, end: Descent[Found], match: Match[Found]) -> Descent[Found]:
    """A descent that goes on where another one ended, which matched blocks less exactly."""
    matrix, _ = end.onwards()
    return _followed(pair, swept(pair, end.start, matrix, match, end.sweeps + 1, end.blocks), match)


def _followed(pair: Pair, best: Descent[Found], match: Match[Found], rival: Apart | None = None) -> Descent[Found]:
    """A descent from its first sweep to its end."""
    types = {end.dtype(feedforward=True) for end in (pair.a, pair.b)}
    rounding = pair.before.squares * (_ROUNDING_OF_DOUBLE if types == {torch.float64} else _ROUNDING)
    for sweeps in range(best.sweeps + 1, _SWEEPS + 1):
        matrix, fall = best.onwards()
        if best.after.squares <= rounding or torch.equal(matrix, best.matrix) or _over(pair, best, fall):
            return best
        before, found = best.after, swept(pair, best.start, matrix, match, sweeps)
        best = found if found.after.squares < before.squares else best
        if not found.after.squares < before.squares * (1 - _FALL) or _hopeless(before, best.after, rival):
            return best
    return best


def _over(pair: Pair, end: Descent[Found], fall: float) -> bool:
    """Whether a further sweep would hardly lower the distance, by how much the stream's map does by itself."""
    times = _TIMES_IN_PLACES if pair.group.basis.discrete else _TIMES
    return times * (fall + _BLUR * pair.size) < _FALL * end.after.squares


def _hopeless(before: Apart, after: Apart, rival: Apart | None) -> bool:
    """Whether a descent that fell so much in its last sweep will end above its rival, in either distance."""
    if rival is None or after.distance < rival.distance:
        return False
    return after.squares - rival.squares > _HOPE * (before.squares - after.squares)


def swept(
    pair: Pair, start: str, matrix: Tensor, match: Match[Found], sweeps: int = 1, known: Found | None = None
) -> Descent[Found]:
    """All blocks matched once, in some basis of the stream."""
    turned, found = pair.turned(matrix), list[Found]()

    def moved() -> Iterator[Tensors]:
        found.append((yield from match(pair.folded[0], turned, known)))

    after, fit = pair.compared(moved(), turned)
    return Descent(start, matrix, found[0], after, fit, sweeps)


def starts(pair: Pair, match: Match[Found]) -> Iterator[tuple[str, Tensor]]:
    """Maps of the stream to begin with, by name, each once; they are found as they are asked for."""
    outer = pair.outer()
    yield "embeddings", outer
    if pair.group.basis.discrete:
        placed = _placed(pair, match)
        if not torch.equal(placed, outer):
            yield "rotation", placed
    identity = torch.eye(pair.group.width, dtype=torch.float64, device=pair.device)
    if not torch.equal(outer, identity):
        yield "identity", identity


def _placed(pair: Pair, match: Match[Found]) -> Tensor:
    """Where coordinates only change places: the map nearest to where all rotations would lead.

    Blocks that are matched in the basis of a rotation agree far better, and say more of which coordinates belong
    together, than in that of the permutation nearest to it.
    """
    loose = pair.loose
    turned = swept(loose, "rotation", loose.outer(), match)
    return turned.fit.within(pair.group, turned.matrix).best()
