"""Does one model come from another? No move inside a block's group can hide it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from isobasin.alignment import Alignment, AnyMove
from isobasin.architectures.resolve import check_comparable
from isobasin.choices import HeadCost, Method, Scope
from isobasin.matching.feedforward import branches
from isobasin.matching.heads import head_costs
from isobasin.model import Blocks, Model, Source, open_pair
from isobasin.symmetries import attention
from isobasin.text import Plain
from isobasin.verbs.align import match_models
from isobasin.verbs.equivalent import equivalent_models, may_be_turned
from isobasin.verbs.settings import Matching, Progress, Running, chosen_device, silent
from isobasin.verification import known_feedforwards

# Between the scores of unrelated and of related models: docs/provenance.md.
RELATED = 0.2
# Weights that are further apart than this after matching differ by more than rounding to any type.
_EQUAL = 0.1
# A block was moved if matching brings its weights this much nearer, and they were further apart than rounding.
_NEARER = 0.5
_APART = 1e-3


class Verdict(StrEnum):
    """What B is, given A.

    * same: a move that changes no function carries it to A; or it is A.
    * finetuned: its blocks are A's, changed in place.
    * obfuscated: its blocks are A's after such a move, and changed besides.
    * unrelated: its blocks are no nearer to A's than those of a model that was trained apart.
    """

    same = "same function"
    finetuned = "fine-tuned from it"
    obfuscated = "obfuscated copy"
    unrelated = "unrelated"


@dataclass(frozen=True)
class BlockScore(Plain):
    """What one block says.

    Attributes:
        kind: "attention" or "feed-forward".
        layer: Index of the layer.
        score: Mean correlation of the circuits of matched heads or units: 1 for equal ones, near 0 for unrelated.
        before: Relative distance of the weights as they are.
        after: Relative distance after the move that brings them nearest.
    """

    kind: str
    layer: int
    score: float
    before: float
    after: float
    _also = ("moved",)

    @property
    def moved(self) -> bool:
        """Whether a move explains most of the distance."""
        return self.before > _APART and self.after < _NEARER * self.before


@dataclass(frozen=True)
class Comparison(Plain):
    """Whether one model comes from another.

    Attributes:
        verdict: What B is, given A.
        blocks: The attention and then the feed-forward blocks.
        device: Where the work was done.
    """

    verdict: Verdict
    blocks: tuple[BlockScore, ...]
    device: str
    _also = ("score",)

    @property
    def score(self) -> float:
        """The mean of all blocks' scores."""
        return _score(self.blocks)


def compare(
    a: Source, b: Source, *, device: str = "cpu", allow_pickle: bool = False, progress: Progress = silent
) -> Comparison:
    """Does B come from A: as it is, fine-tuned, or moved inside the groups of its blocks to hide that?

    Scores need no move at all, since moves change no circuit: only heads and units are matched. Moves of the residual
    stream are recognised where nothing else was changed (`isobasin.equivalent`), and hide a copy that was.

    Args:
        a: The one that may be the origin: folder, hub id, or transformers model.
        b: The other, of the same architecture.
        device: Where the work is done.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.
    """
    device = chosen_device(device)
    with open_pair(a, b, allow_pickle=allow_pickle, even=True) as (one, other):
        known = bool(known_feedforwards(one) and known_feedforwards(other))
        check_comparable(one.specification, other.specification, feedforward=known)
        scope = Scope.block if known else Scope.attention
        matching = Matching(method=Method.balanced, scope=scope, max_condition=math.inf)
        running = Running(device, verify=False, progress=progress)
        found = match_models(one, other, matching, running)
        blocks = tuple(
            block for scores in (attention_scores, _feedforward_scores) for block in scores(found, one, other, device)
        )
        # Equal functions are equal after matching, but for those in other bases of the residual stream.
        maybe = all(block.after < _EQUAL for block in blocks) or may_be_turned(one, other)
        same = maybe and equivalent_models(one, other, running).equivalent
        return Comparison(Verdict.same if same else _verdict(blocks), blocks, running.device)


def _verdict(blocks: tuple[BlockScore, ...]) -> Verdict:
    """What scores and distances say of models that are not the same function."""
    if _score(blocks) < RELATED:
        return Verdict.unrelated
    return Verdict.obfuscated if any(block.moved for block in blocks) else Verdict.finetuned


def _score(blocks: tuple[BlockScore, ...]) -> float:
    return sum(block.score for block in blocks) / len(blocks)


def attention_scores(found: Alignment, a: Blocks, b: Blocks, device: str) -> Iterator[BlockScore]:
    """What the attention blocks of two models say whose heads an alignment matches; streams are taken as they are."""
    for layer, ours, theirs in zip(found.layers, a.specification.attention, b.specification.attention, strict=True):
        # Tables and sinks are no circuits: their distances would be added to a cosine.
        pair = [
            replace(block.read(model.stored(block), device), table=None, sink=None)
            for block, model in ((ours, a), (theirs, b))
        ]
        element = layer.element.to(device)
        ordered = attention.permute(pair[1], element.outer, element.inner)
        costs = head_costs(layer.group, pair[0], ordered, HeadCost.cosine)
        matched = costs.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)
        yield _scored("attention", layer, 1 - float(matched.mean()) / 2, _size(pair[0].tensors()))


def _feedforward_scores(found: Alignment, a: Model, b: Model, device: str) -> Iterator[BlockScore]:
    blocks = zip(found.feedforward, a.feedforwards(), b.feedforwards(), strict=True) if found.feedforward else ()
    for layer, ours, theirs in blocks:
        reference, model = (block.read(m.stored(block), device) for block, m in ((ours, a), (theirs, b)))
        moved = branches(layer.group.act(layer.element.to(device), model))
        cosines = [torch.cosine_similarity(x, moved[name], -1) for name, x in branches(reference).items()]
        score = float(torch.stack(cosines).prod(0).mean())
        yield _scored("feed-forward", layer, score, _size(reference.tensors()))


def _scored(kind: str, entry: AnyMove, score: float, size: float) -> BlockScore:
    distances = (entry.statistics.distance_before, entry.statistics.distance_after)
    return BlockScore(kind, entry.layer, score, *(x / size if size else x for x in distances))


def _size(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([x.square().sum() for x in tensors.values()]).sum().sqrt())
