"""Matching the blocks of two models as they are: those that are alike together, as many at a time as fit in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, starmap

import torch
from torch import Tensor

from isobasin.alignment import (
    ATTENTION,
    FEEDFORWARD,
    Alignment,
    AnyMove,
    AttentionMove,
    FeedForwardMove,
    Move,
    Statistics,
    condition_of,
    named,
)
from isobasin.architectures.feedforwards import FeedForward
from isobasin.errors import VerificationError
from isobasin.matching import circuits, feedforward
from isobasin.matching.attention import Match, distance, head_permutation, match
from isobasin.matching.feedforward import match_feedforward
from isobasin.matching.heads import assign, head_costs
from isobasin.matching.inputs import Moments, weighted
from isobasin.model import Blocks, Digest, batches, read_blocks
from isobasin.symmetries.feedforward import FeedForwardWeights
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.inputs import ByName, at
from isobasin.verbs.settings import Matching, Running
from isobasin.verification import Verification, compare_blocks, compare_feedforward

Pair = tuple[AttentionWeights, AttentionWeights]
Digests = tuple[Digest | None, Digest | None]
Heads = tuple[Tensor, Tensor]
"""The outer and the inner permutation of heads."""


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
    """

    a: Blocks
    b: Blocks
    matching: Matching
    running: Running
    inputs: ByName | None = None
    digests: Digests = (None, None)

    def alignment(self) -> Alignment:
        """The moves of all blocks that are matched.

        Raises:
            VerificationError: A move changes what a block computes.
        """
        ours, theirs = (m.feedforwards() if self.matching.feedforward else () for m in (self.a, self.b))
        pairs = list(zip(ours, named(FEEDFORWARD, theirs), strict=True))
        steps = len(self.b.specification.attention) + len(pairs)
        self.running.progress("matching", 0, steps)
        moves: list[AnyMove] = []
        checks: list[Verification] = []
        for move, check in chain(self._attention(), starmap(self._feedforward, pairs)):
            moves.append(move)
            checks += [] if check is None else [check]
            self.running.progress("matching", len(moves), steps)
        verified = max(checks, key=lambda check: check.max_rel, default=None)
        return Alignment(self.b.specification.model_type, tuple(moves), {}, verified)

    def _attention(self) -> Iterator[tuple[AttentionMove, Verification | None]]:
        """Match the attention blocks, those that are alike together."""
        blocks = self.b.specification.attention
        # What is kept is allocated before the large temporaries, which could not be returned to the system around it.
        elements = [block.group.identity() for block in blocks]
        names = [name for name, _ in named(ATTENTION, blocks)]
        heads = self._tied_heads()
        for batch in batches(blocks):
            group, moments = blocks[batch[0]].group, self._moments(batch)
            reference, moving = self._read(batch, self.digests)
            found = match(
                group,
                reference,
                moving,
                order=self._order(group, reference, moving, moments, [heads.get(i) for i in batch]),
                moments=moments,
                method=self.matching.method,
                head_cost=self.matching.head_cost,
                max_condition=self.matching.limit(self._dtype),
            )
            statistics = self._statistics(group, found, reference, moving)
            for position, index in enumerate(batch):
                elements[index].copy_(found.element[position])
                compare = partial(compare_blocks, group, moving[position], found.moved[position])
                check = self._checked(blocks[index].name, compare)
                yield Move(names[index], group, elements[index], statistics[position]), check
        for first, *others in self.b.specification.ties:
            for other in others:
                # They are the same but for rounding, and the table is written once.
                elements[other].parts["table_shift"].copy_(elements[first].parts["table_shift"])

    @property
    def _dtype(self) -> torch.dtype:
        """The type that moved attention weights are stored in."""
        return self.running.dtype or self.b.dtype()

    def _eps(self, *, wide: bool = False) -> float:
        """The coarsest rounding of the stored weights of attention, or of feed-forward blocks as well."""
        return max(torch.finfo(model.dtype(feedforward=wide)).eps for model in (self.a, self.b))

    def _read(self, batch: Sequence[int], digests: Digests = (None, None)) -> Pair:
        """The weights of some alike attention blocks of reference and model."""
        device, (first, second) = self.running.device, digests
        return read_blocks(self.a, batch, device, first), read_blocks(self.b, batch, device, second)

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
                pair = _weighted(*self._read([index]), self._moments([index]))
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
        size, eps = distance(a, a.map(torch.zeros_like)).tolist(), self._eps()
        rounding = circuits.rounding(group, found.moved, self._dtype).tolist()
        rows: list[Statistics] = []
        for i in range(len(before)):
            bound = condition_of(group, found.element[i])
            status = "converged" if found.converged[i] else "max-iterations"
            status = "exact" if _is_rounding(after[i], size[i], eps * bound) else status
            status = "capped" if found.capped[i] else status
            rows.append(Statistics(before[i], after[i], bound, int(found.iterations[i]), status, rounding[i]))
        return rows

    def _feedforward(
        self, ours: FeedForward, theirs: tuple[str, FeedForward]
    ) -> tuple[FeedForwardMove, Verification | None]:
        """Match one feed-forward block, of the model with what moves call it."""
        name, block = theirs
        reference, model = (self._units(i, each) for i, each in enumerate((ours, block)))
        moments = at(self.inputs, [ours], self.running.device)
        own = None if moments is None else {role: moment[0] for role, moment in moments.items()}
        found = match_feedforward(block.group, reference, model, own)
        size = math.sqrt(sum(float(t.square().sum()) for t in reference.tensors().values()))
        after = feedforward.distance(reference, found.moved)
        status = "exact" if _is_rounding(after, size, self._eps(wide=True)) else "optimal"
        statistics = Statistics(feedforward.distance(reference, model), after, status=status)
        check = self._checked(block.name, partial(compare_feedforward, block, model, found.moved))
        return Move(name, block.group, found.element.to("cpu"), statistics), check

    def _units(self, which: int, block: FeedForward) -> FeedForwardWeights:
        """The weights of a feed-forward block of the reference (0) or the model (1)."""
        stored, digest = (self.a, self.b)[which].stored(block), self.digests[which]
        if digest is not None:
            digest.update(block, stored)
        return block.read(stored, self.running.device)

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
