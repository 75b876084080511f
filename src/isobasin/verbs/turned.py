"""Two models in one basis of the residual stream, and what rounding explains there: values mix, and biases are sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isobasin.alignment.stream import Turned, gains_of
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.resolve import check_comparable
from isobasin.choices import Scope
from isobasin.diagnosis.rounding import coarser
from isobasin.errors import ArchitectureError, TensorError
from isobasin.model import Blocks, Model
from isobasin.symmetries.stream import Basis
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.align import match_models
from isobasin.verbs.settings import Matching, Running
from isobasin.verification import known_feedforwards

# What rounding explains of a tensor in another basis of the residual stream: of a row of a matrix relative to its size,
# where one rounding makes half a unit in the last place, and of biases, which are sums, to the largest value.
_TURNED_ROW = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TURNED = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# A whole match that leaves more of the distance than this found no common function.
_FAR = 1e-2


def turned_ends(a: Model, b: Model, unequal: set[str], running: Running) -> tuple[Turned, Turned] | None:
    """Both in the basis of a's residual stream, if there is one in which they are the same up to moves of blocks.

    There all gains of a normalisation are one number: what a small one keeps from its readers is no part of the
    function, and divided by it would be rounding that looks like a difference.
    """
    inside = {b.view.canonical[name] for block in known_feedforwards(b) for name in block.shapes()}
    if not unequal - inside:
        return None
    if not may_be_turned(a, b):
        return None
    try:
        check_comparable(a.specification, b.specification, feedforward=True)
        found = match_models(a, b, Matching(scope=Scope.model, max_condition=math.inf), running)
    except (ArchitectureError, TensorError):
        return None  # nothing is known of the stream: what differs is reported as it is
    distance, turned = found.total_distance(), found.turned(b, running.device)
    if turned is None or distance["after"] > _FAR * distance["before"]:
        return None
    element, plan = turned.move.element, a.stream()
    even = element.gains.square().mean(-1, keepdim=True).sqrt().expand_as(element.gains)
    still = replace(plan.group.identity(*gains_of(a, plan)), biases=element.biases)
    ours, theirs = (turned.move.having(replace(each, gains=even)) for each in (still, element))
    return Turned(a, plan, ours, running.device), replace(turned, move=theirs)


def may_be_turned(a: Model, b: Model) -> bool:
    """Whether, at a glance, a map of the residual stream may carry b to a; no if nothing is known of the stream."""
    try:
        return _equal_lengths(a, b)
    except (ArchitectureError, TensorError):
        return False


def _equal_lengths(a: Model, b: Model) -> bool:
    """Whether the first embedding's vectors are as long in both streams, which no map of one changes.

    It costs next to nothing, where matching unrelated models whole would cost much.
    """
    lengths: list[Tensor] = []
    for model in (a, b):
        stream = model.stream()
        first = stream.along[0]
        vectors = model.double([first.tensor])[first.tensor]
        if stream.group.basis is Basis.centred:
            vectors = vectors - vectors.mean(first.axis, keepdim=True)
        lengths.append(vectors.norm(dim=first.axis))
    allowed = TURNED.get(coarser(a.dtype(), b.dtype()))
    if allowed is None:
        return False  # of fewer bits: blocks are refused where they are read
    slack = allowed * float(lengths[0].max())
    return lengths[0].shape == lengths[1].shape and bool(((lengths[0] - lengths[1]).abs() <= slack).all())


def near_mixed(x: Tensor, y: Tensor, dtype: torch.dtype, added: float = 0.0) -> bool:
    """Whether values agree that a change of basis mixed, so that rounding of one is rounding of others.

    Args:
        x: The reference's, of a matrix with the axis last that was mixed.
        y: The other's.
        dtype: The type that they are stored in.
        added: The largest that was added to a bias, or to a row, which leaves rounding of its own size.
    """
    if x.ndim < 2:
        return bool(((x - y).abs() <= TURNED[dtype] * max(added, largest(x))).all())
    sizes = x.norm(dim=-1)
    allowed = _TURNED_ROW[dtype] * sizes.clamp(min=max(added, float(sizes.median())))
    return bool(((x - y).norm(dim=-1) <= allowed).all())


def largest(x: Tensor) -> float:
    """The size of a matrix's largest row, or the largest of biases."""
    return float((x.abs() if x.ndim < 2 else x.norm(dim=-1)).max())


def added_inside(ends: Sequence[Blocks], blocks: Sequence[FeedForward]) -> dict[str, float]:
    """`size_added` to the biases of a block in two models, by role, where those are turned."""
    found: dict[str, float] = {}
    for end, block in zip(ends, blocks, strict=True):
        for name, projection in block.readers.items():
            if isinstance(end, Turned) and projection.bias is not None:
                role = f"{name.partition('.')[0]}_bias"
                found[role] = max(found.get(role, 0.0), size_added(end, projection.bias))
    return found


def size_added(end: Turned, name: str) -> float:
    """The size of what a normalisation's bias adds to a reader's of this name, most of which may cancel.

    Terms are rounded independently: it is the root of the sum of their squares.
    """
    terms = _terms(end, name)
    return 0.0 if terms is None else float(terms.norm(dim=-1).max())


def rounded_terms(end: Blocks, block: AttentionBlock) -> AttentionWeights:
    """A block's weights, with the sizes of the terms where biases are sums, as `circuits.Stored` has them."""
    stored = dict(end.stored(block))
    for projection in block.readers.values():
        if isinstance(end, Turned) and projection.bias is not None:
            terms = _terms(end, projection.bias)
            if terms is not None:
                own = end.model.double([projection.bias])[projection.bias]
                # Of each product both factors were rounded.
                squares = own.square() + 2 * terms.square().sum(-1).view_as(own)
                stored[projection.bias] = squares.sqrt().to(stored[projection.bias])
    return block.read(stored)


def _terms(end: Turned, name: str) -> Tensor | None:
    """What a normalisation's bias adds to a reader's of this name, term by term, the last axis; None if nothing."""
    for norm in end.plan.norms:
        for reader in norm.readers if norm.absorbed else ():
            if norm.bias is not None and reader.bias == name:
                parts = end.model.double([reader.weight, norm.bias])
                weight, bias = parts[reader.weight].movedim(reader.axis, -1), parts[norm.bias]
                return (weight.unflatten(-1, (-1, len(bias))) * bias).flatten(-2)
    return None
