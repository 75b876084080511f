"""Matching whole models: the ends of coordinate descent from several starts, and the alignment that the best one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from isobasin.alignment import STREAM, Alignment, AnyMove, Move, Statistics, StreamMove
from isobasin.alignment.stream import gains_of
from isobasin.choices import Objective
from isobasin.errors import VerificationError
from isobasin.matching.whole.descent import Descent, Match, descend, starts, swept
from isobasin.matching.whole.pair import Pair, gauged
from isobasin.model import Blocks
from isobasin.symmetries.stream import StreamElement, least_gain
from isobasin.verbs.settings import Calibration, Matching, Running
from isobasin.verification import Verification, compare_blocks, compare_feedforward, compare_tensors

# Below this share of the models' squared distance another start has nothing to gain.
_FOUND = 1e-10


def match_whole(
    a: Blocks,
    b: Blocks,
    solvers: Sequence[Match[Alignment]],
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
    ends: list[Descent[Alignment]] = []
    seen = {} if calibration is None else calibration.starts(a, b, pair.streams[1])
    once = bool(seen) and matching.objective is Objective.activations
    options = seen if once else starts(pair) | seen
    for done, (name, matrix) in enumerate(options.items()):
        running.progress("matching", done, len(options))
        if calibration is not None:
            # The nearest map isn't the best one: the start's own, with blocks matched once, may leave a lower loss.
            ends.append(swept(pair, name, matrix, solvers[-1]))
        if not once:
            ends.append(descend(pair, name, matrix, solvers))
        if ends[-1].squares <= _FOUND * pair.apart:
            break
    running.progress("matching", len(options), len(options))
    found, best = _best(pair, ends, matching, calibration)
    return replace(found, verified=_check(pair, best, found)) if running.verify else found


def _best(
    pair: Pair, ends: Sequence[Descent[Alignment]], matching: Matching, calibration: Calibration | None
) -> tuple[Alignment, Descent[Alignment]]:
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


def _check(pair: Pair, end: Descent[Alignment], found: Alignment) -> Verification:
    """Make the move on the model itself and fold what comes out: nothing but rounding may differ from the descent's.

    Raises:
        VerificationError: The move changes the function.
    """
    tensors = pair.b.double(pair.streams[1].names(), pair.device)
    for moved in found.moved(pair.b, pair.device):
        tensors |= moved
    folded = gauged(replace(pair.folded[1], tensors=tensors), pair.streams[1], pair.device)
    again = dict(pair.shares.evened(folded).tensors)
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


def _turn(pair: Pair, end: Descent[Alignment]) -> StreamMove:
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
