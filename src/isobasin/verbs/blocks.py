"""Matching the blocks of two models as they are: those that are alike together, as many at a time as fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from isobasin.alignment import (
    ATTENTION,
    FEEDFORWARD,
    Alignment,
    AnyMove,
    Move,
    Statistics,
    condition_of,
    named,
)
from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.feedforwards import FeedForward
from isobasin.choices import Scope
from isobasin.digest import Digest
from isobasin.errors import VerificationError
from isobasin.matching import circuits, feedforward
from isobasin.matching.attention import Match, distance, match, size
from isobasin.matching.feedforward import FeedForwardMatch, match_feedforward
from isobasin.matching.heads import assign, head_costs, head_permutation
from isobasin.matching.inputs import Moments, weighted
from isobasin.matching.products import squares
from isobasin.model import Blocks, batches, read_blocks, stacked
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.inputs import ByName, at
from isobasin.verbs.settings import Matching, Running
from isobasin.verification import Verification, compare_blocks, compare_feedforward

Pair = tuple[AttentionWeights, AttentionWeights]
Digests = tuple[Digest | None, Digest | None]
Heads = tuple[Tensor, Tensor]
"""The outer and the inner permutation of heads."""

# The status of units that were matched nearly as well as can be. No alignment that is handed out has it.
_ROUGH = "rough"


@dataclass(frozen=True)
class Part:
    """What is matched at once: attention blocks that are alike, or one feed-forward block.

    Attributes:
        attention: Indices of the attention blocks.
        heads: Of each the head permutation that it shares with blocks of other parts; None where it shares none.
        feedforward: Index of the feed-forward block; None where it is attention.
    """

    attention: tuple[int, ...] = ()
    heads: tuple[Heads | None, ...] = ()
    feedforward: int | None = None


@dataclass(frozen=True)
class Matched:
    """One block whose move was found.

    Attributes:
        move: The move.
        check: How its function compares before and after; None where nobody asked.
        written: Its tensors after the move, float64.
    """

    move: AnyMove
    check: Verification | None
    written: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class BlockMatching:
    """Two models whose blocks are matched, and how.

    Attributes:
        a: The reference.
        b: The model.
        matching: How.
        running: Where, and whether every block's function is compared before and after.
        inputs: Moments of the reference's inputs, where distances are weighted by them.
        digests: Of reference and model, fed with the tensors of either as they are read; None where nobody asks.
        known: Moves of which those of feed-forward blocks are made again instead of being looked for: what they are
            doesn't depend on how heads are matched. Rough ones are looked for again.
        rough: Whether units may be matched nearly as well as can be, where that is quicker.
    """

    a: Blocks
    b: Blocks
    matching: Matching
    running: Running
    inputs: ByName | None = None
    digests: Digests = (None, None)
    known: Alignment | None = None
    rough: bool = False

    def alignment(self) -> Alignment:
        """The moves of all blocks that are matched.

        Raises:
            VerificationError: A move changes what a block computes.
        """
        return self.together([(matched.move, matched.check) for matched in self._matched()])

    def moving(self) -> Generator[dict[str, Tensor], None, Alignment]:
        """The tensors of every block after its move as soon as that is found, float64; at the end the alignment."""
        found: list[tuple[AnyMove, Verification | None]] = []
        done: set[str] = set()
        for matched in self._matched():
            found.append((matched.move, matched.check))
            new = matched.written()
            # Blocks that read one table move it alike: it is given once.
            yield {name: tensor for name, tensor in new.items() if name not in done}
            done |= new.keys()
            # What is done with is not held while the next block is matched.
            del matched, new
        return self.together(found)

    def together(self, found: Sequence[tuple[AnyMove, Verification | None]]) -> Alignment:
        """The moves of all blocks together, and the worst check."""
        elements = [move.element for move, _ in found]
        for first, *others in self.b.specification.ties:
            for other in others:
                # They are the same but for rounding, and the table is written once.
                elements[other].parts["table_shift"].copy_(elements[first].parts["table_shift"])
        checks = [check for _, check in found if check is not None]
        verified = max(checks, key=lambda check: check.max_rel, default=None)
        return Alignment(self.b.specification.model_type, tuple(move for move, _ in found), {}, verified)

    def parts(self) -> list[Part]:
        """What is matched at once, attention first; each by itself, whatever becomes of the others."""
        blocks, heads = self.b.specification.attention, self._tied_heads()
        units = len(self.b.feedforwards()) if self.matching.feedforward else 0
        attention = [Part(tuple(batch), tuple(heads.get(index) for index in batch)) for batch in batches(blocks)]
        return [*attention, *(Part(feedforward=index) for index in range(units))]

    def blocks_of(self, part: Part) -> list[Block]:
        """The reference's blocks of one part."""
        if part.feedforward is not None:
            return [self.a.feedforwards()[part.feedforward]]
        return [self.a.specification.attention[index] for index in part.attention]

    def matched(self, part: Part, elements: Sequence[AttentionElement] = ()) -> Iterator[Matched]:
        """Match the blocks of one part.

        Args:
            part: Which.
            elements: What the elements of its attention blocks are written to; by default new ones.

        Raises:
            VerificationError: A move changes what a block computes.
        """
        if part.feedforward is None:
            yield from self._attention(part, elements or self._elements(part))
        else:
            yield self._feedforward(part.feedforward)

    def _elements(self, part: Part) -> list[AttentionElement]:
        return [self.b.specification.attention[index].group.identity() for index in part.attention]

    def _matched(self) -> Iterator[Matched]:
        """Match all blocks, attention first."""
        parts = self.parts()
        # What is kept is allocated before the large temporaries, which could not be returned to the system around it.
        elements = [self._elements(part) for part in parts]
        done, steps = 0, sum(len(self.blocks_of(part)) for part in parts)
        self.running.progress("matching", done, steps)
        for matched in chain.from_iterable(map(self.matched, parts, elements)):
            yield matched
            del matched
            done += 1
            self.running.progress("matching", done, steps)

    def _attention(self, part: Part, elements: Sequence[AttentionElement]) -> Iterator[Matched]:
        """Match attention blocks that are alike."""
        blocks = self.b.specification.attention
        names = [name for name, _ in named(ATTENTION, blocks)]
        group, moments = blocks[part.attention[0]].group, self._moments(part.attention)
        some = [[model.specification.attention[index] for index in part.attention] for model in (self.a, self.b)]
        ours, theirs = ([self._stored(i, block) for block in each] for i, each in enumerate(some))
        reference, moving = (
            stacked(each, stored, self.running.device) for each, stored in zip(some, (ours, theirs), strict=True)
        )
        found = match(
            group,
            reference,
            moving,
            order=self._order(group, reference, moving, moments, part.heads),
            moments=moments,
            method=self.matching.method,
            head_cost=self.matching.head_cost,
            max_condition=self.matching.limit(self._dtype),
        )
        statistics = self._statistics(group, found, reference, moving)
        for position, index in enumerate(part.attention):
            elements[position].copy_(found.element[position])
            compare = partial(compare_blocks, group, moving[position], found.moved[position])
            check = self._checked(blocks[index].name, compare)
            move = Move(names[index], group, elements[position], statistics[position])
            yield Matched(move, check, partial(blocks[index].write, theirs[position], found.moved[position]))

    @property
    def _dtype(self) -> torch.dtype:
        """The type that moved attention weights are stored in."""
        return self.running.dtype or self.b.dtype()

    def _eps(self, *, wide: bool = False) -> float:
        """The coarsest rounding of the stored weights of attention, or of feed-forward blocks as well."""
        return max(torch.finfo(model.dtype(feedforward=wide)).eps for model in (self.a, self.b))

    def _stored(self, which: int, block: AttentionBlock | FeedForward) -> dict[str, Tensor]:
        """The tensors of a block of the reference (0) or the model (1) as they are stored."""
        stored, digest = (self.a, self.b)[which].stored(block), self.digests[which]
        if digest is not None:
            digest.update(block, stored)
        return stored

    def _moments(self, batch: Sequence[int]) -> Moments | None:
        """The moments of what some alike attention blocks read."""
        return at(self.inputs, [self.a.specification.attention[index] for index in batch], self.running.device)

    def _tied_heads(self) -> dict[int, Heads]:
        """The head permutation of blocks that share theirs, by index: that of least cost over all of them.

        They are read one by one, and once more to be matched: together they may not fit in memory.
        """
        blocks = self.b.specification.attention
        found: dict[int, Heads] = {}
        for indices in self.b.specification.ties:
            if not blocks[indices[0]].group.permuted:
                continue
            costs = torch.zeros((), dtype=torch.float64, device=self.running.device)
            for index in indices:
                a, b = (read_blocks(model, [index], self.running.device) for model in (self.a, self.b))
                pair = _weighted(a, b, self._moments([index]))
                costs = costs + head_costs(blocks[index].group, *pair, self.matching.head_cost)
            outer, inner = assign(costs)
            found |= dict.fromkeys(indices, (outer[0], inner[0]))
        return found

    def _order(
        self,
        group: AttentionGroup,
        reference: AttentionWeights,
        model: AttentionWeights,
        moments: Moments | None,
        tied: Sequence[Heads | None],
    ) -> Heads | None:
        """The head permutations of a batch in which some blocks share theirs with others; None where none does."""
        if not any(tied):
            return None
        pair = _weighted(reference, model, moments)
        outer, inner = head_permutation(group, *pair, self.matching.head_cost)
        for position, known in enumerate(tied):
            if known is not None:
                outer[position], inner[position] = known
        return outer, inner

    def _statistics(
        self, group: AttentionGroup, found: Match, a: AttentionWeights, b: AttentionWeights
    ) -> list[Statistics]:
        """What is reported of every block of a stack."""
        before, after = distance(a, b).tolist(), distance(a, found.moved).tolist()
        whole, eps = size(a).tolist(), self._eps()
        rounding = circuits.rounding(group, found.moved, self._dtype, known=found.sides).tolist()
        rows: list[Statistics] = []
        for i in range(len(before)):
            bound = condition_of(group, found.element[i])
            status = "converged" if found.converged[i] else "max-iterations"
            status = "exact" if _is_rounding(after[i], whole[i], eps * bound) else status
            status = "capped" if found.capped[i] else status
            rows.append(Statistics(before[i], after[i], bound, int(found.iterations[i]), status, rounding[i]))
        return rows

    def _feedforward(self, index: int) -> Matched:
        """Match one feed-forward block."""
        ours, (name, block) = self.a.feedforwards()[index], named(FEEDFORWARD, self.b.feedforwards())[index]
        stored = [self._stored(i, each) for i, each in enumerate((ours, block))]
        reference, model = (b.read(s, self.running.device) for b, s in zip((ours, block), stored, strict=True))
        moments = at(self.inputs, [ours], self.running.device)
        own = None if moments is None else {role: moment[0] for role, moment in moments.items()}
        known = self._known(name)
        if known is None:
            found = match_feedforward(block.group, reference, model, own, rough=self.rough)
        else:
            found = FeedForwardMatch(known, block.group.act(known, model))
        whole = math.sqrt(sum(map(squares, reference.tensors().values())))
        after = feedforward.distance(reference, found.moved)
        status = "exact" if _is_rounding(after, whole, self._eps(wide=True)) else _ROUGH if found.rough else "optimal"
        statistics = Statistics(feedforward.distance(reference, model), after, status=status)
        check = self._checked(block.name, partial(compare_feedforward, block, model, found.moved))
        move = Move(name, block.group, found.element.to("cpu"), statistics)
        return Matched(move, check, partial(block.write, stored[1], found.moved))

    def _known(self, name: str) -> FeedForwardElement | None:
        """What moves a feed-forward block, if that is known."""
        known = () if self.known is None else self.known.feedforward
        moves = (move for move in known if move.block == name and move.statistics.status != _ROUGH)
        return next((move.element.to(self.running.device) for move in moves), None)

    def _checked(self, name: str, compare: Callable[[], Verification]) -> Verification | None:
        """How one block's function compares before and after, if that is asked for."""
        check = compare() if self.running.verify else None
        if check is not None and not check.equal:
            raise VerificationError(
                f"{name}: the moved block's outputs differ by {check.max_rel:.2g} relative: lower --max-condition"
            )
        return check


def _weighted(a: AttentionWeights, b: AttentionWeights, moments: Moments | None) -> Pair:
    """The weights of reference and model as their readers' inputs weigh them."""
    return (a, b) if moments is None else (weighted(a, moments), weighted(b, moments))


def _is_rounding(after: float, size: float, eps: float) -> bool:
    """Whether a distance that is left is rounding of weights of this size, and no more."""
    return after <= size * min(max(1e-9, 20 * eps), 1e-3)


def contents(blocks: Blocks, matching: Matching) -> str:
    """SHA-256 of what is matched of a model: its blocks and, of a whole model, what lies between them."""
    digest = Digest()
    inside: set[str] = set()
    for block in blocks.blocks(feedforward=matching.feedforward):
        digest.update(block, blocks.stored(block))
        inside |= block.shapes().keys()
    along = blocks.stream(keep_gains=matching.keep_gains).ordered() if matching.scope is Scope.model else ()
    for index, name in enumerate(name for name in along if name not in inside):
        digest.add(f"stream.{index}", blocks.checked([name])[name])
    return digest.hexdigest()
