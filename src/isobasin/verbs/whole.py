"""Matching whole models: the residual stream and all blocks together, by coordinate descent.

Of two folded models (`isobasin.verbs.folding`), with the blocks fixed the stream's map is one Procrustes problem,
and with the map fixed every block is matched as it is alone (arXiv 2606.17830, section 3; the residual map is this
library's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.alignment import STREAM, Alignment, AnyMove, Move, Statistics, StreamMove
from isobasin.alignment.stream import gains_of
from isobasin.choices import Objective
from isobasin.errors import VerificationError
from isobasin.model import Blocks
from isobasin.symmetries.stream import StreamElement, least_gain
from isobasin.verbs.folding import Pair, Tensors, fold
from isobasin.verbs.settings import Calibration, Matching, Running
from isobasin.verification import Verification, compare_blocks, compare_feedforward, compare_tensors

# A sweep that lowers the squared distance by a smaller share than this is the last.
_FALL = 1e-3
_SWEEPS = 100
# Below these shares of the models' squared distance a sweep has only rounding to gain, and another start nothing.
_ROUNDING = 1e-15
_FOUND = 1e-10


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
    made = [replace(end.blocks, moves=(_turn(pair, end), *_unshifted(end.blocks))) for end in ends]
    scores = [0.0] if calibration is None else calibration.scores(pair.a, pair.b, made)
    best = min(range(len(ends)), key=scores.__getitem__)
    return made[best], ends[best]


def _unshifted(blocks: Alignment) -> Iterator[AnyMove]:
    """The moves of blocks without shifts of routers: a shift is a vector of the stream, and wouldn't turn with it."""
    yield from blocks.layers
    for move in blocks.feedforward:
        yield replace(move, element=move.element.having({"shift": torch.zeros_like(move.element.shift)}))


def _check(pair: Pair, end: Descent, found: Alignment) -> Verification:
    """Make the move on the model itself and fold what comes out: nothing but rounding may differ from the descent's.

    Raises:
        VerificationError: The move changes the function.
    """
    tensors = pair.b.double(pair.streams[1].names(), pair.device)
    for moved in found.moved(pair.b, pair.device):
        tensors |= moved
    folded = fold(replace(pair.folded[1], tensors=tensors), pair.streams[1], pair.device)
    again = dict(pair.shares.evened(replace(pair.folded[1], tensors=folded)).tensors)
    turned = pair.turned(end.matrix)
    checks = [compare_tensors({y: end.moved[y] for _, y in pair.names}, again)]
    for block in turned.specification.attention:
        checks.append(compare_blocks(block.group, block.read(turned.tensors), block.read(again)))
    for block in turned.specification.feedforwards:
        checks.append(compare_feedforward(block, block.read(turned.tensors), block.read(again)))
    worst = max(checks, key=lambda check: check.max_rel)
    if not worst.equal:
        raise VerificationError(f"the moved model differs by {worst.max_rel:.2g} relative: lower --max-condition")
    return worst


def _turn(pair: Pair, end: Descent) -> StreamMove:
    """The move of the residual stream."""
    gains, biases = gains_of(pair.a, pair.streams[0], pair.device)
    own = gains_of(pair.b, pair.streams[1], pair.device)
    limit = least_gain(gains)
    small = gains.abs() < limit
    element = StreamElement(end.matrix, torch.where(small, limit.expand_as(gains), gains), biases, *own)
    statistics = Statistics(
        pair.distance(pair.folded[1].tensors),
        pair.distance(end.moved),
        start=end.start,
        sweeps=end.sweeps,
        small_gains=int(small.sum()),
        unlike=pair.unlike,
    )
    return Move(STREAM, pair.group, element.to("cpu"), statistics)
