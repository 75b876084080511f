"""Does one model come from another? No move inside a block's group can hide it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from isobasin.alignment import Alignment, AnyMove
from isobasin.architectures.blocks import Block
from isobasin.architectures.resolve import check_comparable
from isobasin.choices import HeadCost, Method, Scope
from isobasin.errors import ArchitectureError
from isobasin.matching.heads import head_costs
from isobasin.model import Blocks, Model, Source, open_pair
from isobasin.plain import Plain
from isobasin.symmetries import attention
from isobasin.verbs.align import match_models
from isobasin.verbs.equivalent import equivalent_models
from isobasin.verbs.kinship import StreamScore, in_one_basis
from isobasin.verbs.rows import tables_of
from isobasin.verbs.settings import Matching, Progress, Running, silent
from isobasin.verbs.turned import may_be_turned
from isobasin.verification import known_feedforwards

# What of attention's weights is no circuit: tables' and sinks' distances would be added to a cosine, and most of a bias
# may be there for the mean of what is read, which training apart and training on both move.
_NO_CIRCUIT = dict.fromkeys(("table", "sink", "query_bias", "key_bias", "value_bias", "output_bias"))
# Between the scores of unrelated and of related models: docs/provenance.md.
RELATED = 0.4
# A block is A's for certain above this: of pairs of strangers none has one that scores half as much.
_TAKEN = 0.8
# Weights that are further apart than this after matching differ by more than rounding to any type.
_EQUAL = 0.1
# A block was moved if matching brings its weights this much nearer, and they were further apart than rounding.
_NEARER = 0.5
_APART = 1e-3


class Verdict(StrEnum):
    """What B is, given A.

    * same: a move that changes no function carries it to A; or it is A.
    * body: so it is but for their heads, which are other ones, or only one has any.
    * finetuned: its blocks are A's, changed in place; some layers may be left out.
    * obfuscated: its blocks are A's after such a move, of the residual stream perhaps, and changed besides.
    * parts: some blocks are A's, and the others aren't.
    * unrelated: its blocks are no nearer to A's than those of a model that was trained apart.
    """

    same = "same function"
    body = "same body under another head"
    finetuned = "fine-tuned from it"
    obfuscated = "obfuscated copy"
    parts = "unrelated but for some blocks"
    unrelated = "unrelated"


@dataclass(frozen=True)
class BlockScore(Plain):
    """What one block says.

    Attributes:
        kind: "attention" or "feed-forward".
        layer: Index of A's layer.
        partner: Index of the layer of B that it is compared with.
        score: Mean correlation of the circuits of matched heads or units: 1 for equal ones, near 0 for unrelated.
        before: Relative distance of the weights as they are.
        after: Relative distance after the move that brings them nearest.
    """

    kind: str
    layer: int
    partner: int
    score: float
    before: float
    after: float
    _also = ("moved",)

    @property
    def moved(self) -> bool:
        """Whether a move explains most of the distance."""
        return self.before > _APART and self.after < _NEARER * self.before

    @property
    def taken(self) -> bool:
        """Whether this block is A's, whatever the others are."""
        return self.score > _TAKEN


@dataclass(frozen=True)
class Comparison(Plain):
    """Whether one model comes from another.

    Attributes:
        verdict: What B is, given A.
        blocks: The attention and then the feed-forward blocks, of layers that have a partner.
        device: Where the work was done.
        stream: How the residual streams go together, if that was looked at: where the blocks as they lie are no
            relatives, or the models differ in depth. Blocks were compared in A's basis where that makes them nearer.
    """

    verdict: Verdict
    blocks: tuple[BlockScore, ...]
    device: str
    stream: StreamScore | None = None
    _also = ("score",)

    @property
    def score(self) -> float:
        """The mean of all blocks' scores."""
        return _score(self.blocks)


def compare(
    a: Source, b: Source, *, device: str = "cpu", allow_pickle: bool = False, progress: Progress = silent
) -> Comparison:
    """Does B come from A: as it is, fine-tuned, or moved inside its group to hide that?

    Scores need no move of blocks at all, since moves change no circuit: only heads and units are matched. Where blocks
    don't correlate as they lie, B is brought into the basis of A's residual stream first, which embeddings and
    readouts say; where the depths differ, layers are assigned to layers by what they make of tokens.

    Args:
        a: The one that may be the origin: folder, hub id, or transformers model.
        b: The other, of the same architecture; it may have another depth or vocabulary.
        device: Where the work is done.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.
    """
    running = Running(device, verify=False, progress=progress)
    with open_pair(a, b, allow_pickle=allow_pickle, even=True, alike=False) as (one, other):
        if len(one.specification.attention) == len(other.specification.attention):
            return _compared(one, other, running)
        found = _in_one_basis(one, other, running)
        if found is None:
            check_comparable(one.specification, other.specification)
            raise ArchitectureError("nothing says which layers go together: give two models of one depth")
        return found


def _compared(a: Model, b: Model, running: Running) -> Comparison:
    """`compare` for two models of one depth."""
    known = bool(known_feedforwards(a) and known_feedforwards(b))
    check_comparable(a.specification, b.specification, feedforward=known)
    blocks = _blocks(a, b, known, running)
    found = Comparison(_verdict(blocks), blocks, running.device)
    if found.score < RELATED and (turned := _in_one_basis(a, b, running)) is not None:
        found = max(replace(found, stream=turned.stream), turned, key=_evidence)
    # Equal functions are equal after matching, but for those in other bases of the residual stream.
    maybe = all(block.after < _EQUAL for block in found.blocks) or may_be_turned(a, b)
    same = _same(a, b, running) if maybe else None
    return replace(found, verdict=same) if same else found


def _same(a: Model, b: Model, running: Running) -> Verdict | None:
    """What two models are of which a move carries one to the other, or all of it but the head; None where none does."""
    found = equivalent_models(a, b, running)
    if found.equivalent:
        return Verdict.same
    heads = {model.view.stored(name) for model in (a, b) for name in tables_of(model.canonical).head}
    body = replace(found, other_tensors=tuple(name for name in found.other_tensors if name not in heads))
    return Verdict.body if body.equivalent else None


def _in_one_basis(a: Model, b: Model, running: Running) -> Comparison | None:
    """The comparison in the basis of a's residual stream, of layers with a partner; None where that isn't known."""
    # A head that is the embedding leaves the stream fewer maps than it has under another head.
    found = in_one_basis(a, b, running.device)
    if found is None:
        apart = _untied(a), _untied(b)
        found = in_one_basis(*apart, running.device) if apart != (a, b) else None
    if found is None:
        return None
    feedforward = bool(found.a.feedforwards() and found.b.feedforwards())
    check_comparable(found.a.specification, found.b.specification, feedforward=feedforward)
    blocks = _blocks(found.a, found.b, feedforward, running)
    return Comparison(_verdict(blocks, found.stream), blocks, running.device, found.stream)


def _untied(model: Model) -> Model:
    """The same function with tied tensors apart, of families that can be; itself if none are tied."""
    try:
        canonical = model.canonical.untied()
    except ArchitectureError:
        return model
    return model if canonical is model.canonical else Model.of(canonical)


def _blocks(a: Blocks, b: Blocks, feedforward: bool, running: Running) -> tuple[BlockScore, ...]:
    """The scores of all blocks of two models whose blocks are alike."""
    scope = Scope.block if feedforward else Scope.attention
    found = match_models(a, b, Matching(method=Method.balanced, scope=scope, max_condition=math.inf), running)
    scores = (attention_scores, _feedforward_scores)
    return tuple(block for each in scores for block in each(found, a, b, running.device))


def _verdict(blocks: tuple[BlockScore, ...], stream: StreamScore | None = None) -> Verdict:
    """What scores and distances say of models that are not the same function."""
    if _score(blocks) < RELATED:
        return Verdict.parts if any(block.taken for block in blocks) else Verdict.unrelated
    moved = any(block.moved for block in blocks) or (stream is not None and stream.moved)
    return Verdict.obfuscated if moved else Verdict.finetuned


def _evidence(found: Comparison) -> tuple[bool, bool, float]:
    """What speaks for kinship: of all blocks, of some, and how much."""
    return found.score >= RELATED, found.verdict is Verdict.parts, found.score


def _score(blocks: tuple[BlockScore, ...]) -> float:
    return sum(block.score for block in blocks) / len(blocks)


def attention_scores(found: Alignment, a: Blocks, b: Blocks, device: str) -> Iterator[BlockScore]:
    """What the attention blocks of two models say whose heads an alignment matches; streams are taken as they are."""
    for layer, ours, theirs in zip(found.layers, a.specification.attention, b.specification.attention, strict=True):
        pair = [
            replace(block.read(model.stored(block), device), **_NO_CIRCUIT) for block, model in ((ours, a), (theirs, b))
        ]
        element = layer.element.to(device)
        ordered = attention.permute(pair[1], element.outer, element.inner)
        costs = head_costs(layer.group, pair[0], ordered, HeadCost.cosine)
        matched = costs.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)
        yield _scored("attention", (ours, theirs), layer, 1 - float(matched.mean()) / 2, _size(pair[0].tensors()))


def _feedforward_scores(found: Alignment, a: Blocks, b: Blocks, device: str) -> Iterator[BlockScore]:
    blocks = zip(found.feedforward, a.feedforwards(), b.feedforwards(), strict=True) if found.feedforward else ()
    for layer, ours, theirs in blocks:
        reference, model = (block.read(m.stored(block), device) for block, m in ((ours, a), (theirs, b)))
        moved = layer.group.act(layer.element.to(device), model).tensors()
        rows = {name: x for name, x in reference.tensors().items() if name in ("up", "gate", "down")}
        cosines = [torch.cosine_similarity(x, moved[name], -1) for name, x in rows.items()]
        score = float(torch.stack(cosines).prod(0).mean())
        yield _scored("feed-forward", (ours, theirs), layer, score, _size(reference.tensors()))


def _scored(kind: str, pair: tuple[Block, Block], entry: AnyMove, score: float, size: float) -> BlockScore:
    distances = (entry.statistics.distance_before, entry.statistics.distance_after)
    return BlockScore(kind, pair[0].layer, pair[1].layer, score, *(x / size if size else x for x in distances))


def _size(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([x.square().sum() for x in tensors.values()]).sum().sqrt())
