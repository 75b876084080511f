"""Matching whole models: the ends of coordinate descent from several starts, and the alignment that the best one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat

import torch
from torch import Tensor

from isobasin.alignment import STREAM, Alignment, AnyMove, Move, Statistics, StreamMove
from isobasin.alignment.stream import gains_of
from isobasin.architectures.blocks import AttentionBlock
from isobasin.choices import Objective, Scope
from isobasin.errors import ArchitectureError, TensorError, VerificationError, warn
from isobasin.matching.whole.descent import Descent, Match, continued, descend, starts, swept
from isobasin.matching.whole.pair import Pair
from isobasin.model import Blocks, Model
from isobasin.symmetries.stream import StreamElement, divisible, nonzero
from isobasin.symmetries.turning import Tensors
from isobasin.verbs.settings import Calibration, Matching, Running
from isobasin.verification import Verification, compare_blocks, compare_feedforward, compare_tensors

# Nearer than this share of the reference's squares no other start leads: models that weren't trained from one another
# stay at two fifths of their distance or more. Where a loss chooses, hardly anything may be left to choose from.
_NEAR, _FOUND = 0.05, 1e-10


def widest(models: Sequence[Model], *, keep_gains: bool = False) -> Scope:
    """The widest scope that is known for all of the models; it is said where it isn't the whole of them."""
    try:
        groups = [model.stream(keep_gains=keep_gains).group for model in models]
        if any(group != groups[0] for group in groups):
            raise ArchitectureError(f"{models[-1].name}: its residual stream has other normalisations than the base's")
        return Scope.model
    except (ArchitectureError, TensorError) as error:
        problem = error
    try:
        scope = Scope.block if all(model.feedforwards() for model in models) else Scope.attention
    except (ArchitectureError, TensorError):
        scope = Scope.attention
    warn(f"{problem}: the residual stream stays as it is, as with --scope {scope}")
    return scope


def advise(model: Model, matching: Matching) -> None:
    """Say where a tied head leaves less of the residual stream's group than there would be without."""
    if matching.scope is not Scope.model or matching.keep_gains:
        return
    description, own = model.canonical.description, model.stream().group
    facts = description.family.stream
    free = own if facts is None else replace(own, basis=facts(description.config).basis(kept=False))
    if own != free:
        tied = f"its head is the embedding, which leaves the residual stream {own}"
        warn(f"{model.name}: {tied}: --untie stores the two apart, which frees {free}")


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
        solvers: Match all blocks of two folded models and hand out the moved ones, quicker ones first: what these lead
            nearest to is what the others go on from.
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

    def finished(end: Descent[Alignment]) -> Descent[Alignment]:
        for match in solvers[1:]:
            end = continued(pair, end, match)
        return end

    seen = {} if calibration is None else calibration.starts(a, b, pair.streams[1])
    once = bool(seen) and matching.objective is Objective.activations
    options = seen.items() if once else chain(starts(pair, solvers[0]), seen.items())
    count = len(seen) + (0 if once else 2 + pair.group.basis.discrete)
    for done, (name, matrix) in enumerate(options):
        running.progress("matching", done, count)
        if calibration is not None:
            # The nearest map isn't the best one: the start's own, with blocks matched once, may leave a lower loss.
            ends.append(swept(pair, name, matrix, solvers[-1]))
        if not once:
            # Where a loss chooses, a start that ends further away may be the better one.
            rival = _nearest(ends).after if ends and calibration is None else None
            end = descend(pair, name, matrix, solvers[0], rival)
            ends.append(end if calibration is None else finished(end))
        if ends[-1].after.squares <= (_NEAR if calibration is None else _FOUND) * pair.size:
            break
    if calibration is None:
        ends = [finished(_nearest(ends))]
    running.progress("matching", count, count)
    found, best = _best(pair, ends, matching, calibration)
    return replace(found, verified=_check(pair, best, found)) if running.verify else found


def _nearest(ends: Sequence[Descent[Alignment]]) -> Descent[Alignment]:
    """The end whose models are nearest to one another."""
    return min(ends, key=lambda end: end.after.distance)


def _best(
    pair: Pair, ends: Sequence[Descent[Alignment]], matching: Matching, calibration: Calibration | None
) -> tuple[Alignment, Descent[Alignment]]:
    """The end that is kept, as an alignment."""
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
    turned, compared, checks = pair.turned(end.matrix), {y for _, y in pair.names}, list[Verification]()
    moved = _folded_again(pair, found, compared)

    def same(expected: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> Verification:
        return compare_tensors(*({y: x[y] for y in expected if y in compared} for x in (expected, again)))

    for block, expected, again in zip(turned.blocks(), end.blocks.moved(turned, pair.device), moved, strict=False):
        checks.append(same(expected, again))
        both = turned.read(block.shapes()), again
        if isinstance(block, AttentionBlock):
            checks.append(compare_blocks(block.group, *map(block.read, both)))
        else:
            checks.append(compare_feedforward(block, *map(block.read, both)))
    checks += [same(turned.read(again.keys() & compared), again) for again in moved]
    worst = max(checks, key=lambda check: check.max_rel)
    if not worst.equal:
        raise VerificationError(f"the moved model differs by {worst.max_rel:.2g} relative: lower --max-condition")
    return worst


def _folded_again(pair: Pair, found: Alignment, compared: set[str]) -> Iterator[Tensors]:
    """The moved model folded: all tensors of every block, then, by their names, others that are compared."""
    folded, stream = pair.folded[1], pair.streams[1]
    turned = found.turned(pair.b, pair.device)
    assert turned is not None
    own, shared = turned.read(stream.normalising()), dict[str, Tensor]()
    times = Counter(name for block in folded.blocks() for name in block.shapes())
    shapes = chain((block.shapes() for block in folded.blocks()), repeat(()))
    for names, moved in zip(shapes, found.moved(pair.b, pair.device), strict=False):
        shared |= {name: x for name, x in moved.items() if times[name] > 1}
        if not names and compared.isdisjoint(moved):
            continue
        stored = {name: shared[name] for name in names if name in shared} | moved
        needed = {name: own[name] for name in stream.needed(stored) if name in own}
        yield folded.made(needed | stored)


def _turn(pair: Pair, end: Descent[Alignment]) -> StreamMove:
    """The move of the residual stream."""
    gains, biases = gains_of(pair.a, pair.streams[0], pair.device)
    own, own_biases = gains_of(pair.b, pair.streams[1], pair.device)
    element = StreamElement(end.matrix, divisible(gains), biases, nonzero(own), own_biases)
    statistics = Statistics(
        pair.before.distance,
        end.after.distance,
        start=end.start,
        sweeps=end.sweeps,
        small_gains=int((element.gains != gains).sum()),
        unlike=pair.unlike,
    )
    return Move(STREAM, pair.group, element.to("cpu"), statistics)
