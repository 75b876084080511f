"""What the ends of a merge have in common: without anything, their mean computes what neither of them does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.choices import Scope
from isobasin.errors import ArchitectureError
from isobasin.model import Model
from isobasin.plain import Plain
from isobasin.verbs.compare import BlockScore, attention_scores

# Rows of a table or weight that are enough to see whether two have anything in common.
_ROWS = 4096
# What a block's score or a weight's correlation must be to count: strangers' are near 0 where they lie.
_COMMON = 0.2
# Of fewer values, as of two rows of token types, strangers may correlate as far by chance: 4.5 standard deviations.
_TELLING = 500
# Mean scores of whole models after a move: above it fine-tuned ones (0.9), below it those trained apart (0.4).
_NEAR = 0.6
_LEARN = "`isobasin refine A B --data DATA -o R`, then `isobasin interpolate R/reference R` may do better"


@dataclass(frozen=True)
class Relation(Plain):
    """What a model has in common with the one that it was aligned to.

    Attributes:
        model: What the user called it.
        attention: How far the circuits of the attention blocks correlate, after the move.
        elsewhere: The highest correlation that other weights were seen to have where they lie; None where nobody
            looked, since attention correlates or everything was moved.
        scope: What was moved.
    """

    model: str
    attention: tuple[BlockScore, ...]
    elsewhere: float | None
    scope: Scope
    _also = ("related", "words")

    @property
    def related(self) -> bool:
        """Whether any block or weight has something in common with its partner."""
        return any(block.score >= _COMMON for block in self.attention) or (self.elsewhere or 0) >= _COMMON

    @property
    def words(self) -> str:
        """What that means, and what would help."""
        scores = [block.score for block in self.attention]
        span = f"scores {min(scores):.2f} to {max(scores):.2f}"
        if self.scope is Scope.model:
            more = "" if sum(scores) > _NEAR * len(scores) else f", as of models trained apart: {_LEARN}"
            return f"after the move its attention circuits correlate ({span}){more}"
        far = sum(not score >= _COMMON for score in scores)
        if not far:
            return f"related: the circuits of all attention blocks correlate ({span})"
        if self.related:
            more = ": --scope block matches the feed-forward units of layers that were trained anew, too"
            blocks = f"the attention circuits of {far} of {len(scores)} blocks ({span})"
            return f"related, but not in {blocks}{more if self.scope is Scope.attention else ''}"
        others = f"other weights (at most {self.elsewhere:.2f})"
        return f"unrelated: neither attention circuits ({span}) nor {others} correlate"


def relations(models: list[Model], alignments: tuple[Alignment, ...], device: str) -> tuple[Relation, ...]:
    """What each model but the first has in common with that, after its move."""
    pairs = zip(models[1:], alignments, strict=True)
    return tuple(_relation(models[0], model, alignment, device) for model, alignment in pairs)


def refuse_unrelated(found: tuple[Relation, ...]) -> None:
    """Refuse models that have nothing in common, and whose residual streams stay as they are.

    Raises:
        ArchitectureError: Naming the first.
    """
    for relation in found:
        if not (relation.related or relation.scope is Scope.model):
            advice = "use --scope model or `isobasin refine`, or write it nevertheless with --force-unrelated"
            raise ArchitectureError(
                f"{relation.model}: {relation.words}, so their mean computes what neither does: {advice}"
            )


def _relation(a: Model, b: Model, alignment: Alignment, device: str) -> Relation:
    turned = alignment.turned(b, device)
    scope = Scope.model if turned is not None else Scope.block if alignment.feedforward else Scope.attention
    scores = tuple(attention_scores(alignment, a, turned or b, device))
    near = scope is Scope.model or any(block.score >= _COMMON for block in scores)
    return Relation(b.name, scores, None if near else _highest(_correlations(a, b)), scope)


def _highest(found: Iterator[float]) -> float:
    """The highest of some correlations, or the first that tells that two models are related."""
    highest = 0.0
    for each in found:
        highest = max(highest, each)
        if highest >= _COMMON:
            break
    return highest


def _correlations(a: Model, b: Model) -> Iterator[float]:
    """Of all weights outside attention, as they lie; vectors, and a few values, are too much alike to tell anything."""
    inside = {name for block in a.specification.attention for name in block.shapes()}
    kinds = a.dtypes()
    for name, ours in a.view.tensors.items():
        theirs = b.view.tensors[name]
        plain = kinds[ours].is_floating_point and kinds[ours].itemsize > 1
        shape = a.shape(ours)
        telling = len(shape) > 1 and (shape[0] - 1) * math.prod(shape[1:]) >= _TELLING
        if ours not in inside and plain and telling and shape == b.shape(theirs):
            yield _correlation(a.read([ours])[ours], b.read([theirs])[theirs])


def _correlation(x: Tensor, y: Tensor) -> float:
    """The cosine of two weights whose rows are centred: what all rows have in common is no sign of kinship."""
    rows = [weight[:_ROWS].flatten(1).double() for weight in (x, y)]
    one, other = ((weight - weight.mean(0)).flatten() for weight in rows)
    return float(torch.cosine_similarity(one, other, dim=0))
