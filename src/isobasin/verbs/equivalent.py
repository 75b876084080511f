"""Are two models the same function, and is there a group element that shows it?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import AttentionMove
from isobasin.alignment.stream import Turned
from isobasin.architectures.meaning import differences
from isobasin.checkpoints import check_finite, unlike_modules
from isobasin.diagnosis.rounding import coarser, eps as eps_of, smallest
from isobasin.matching import circuits, feedforward
from isobasin.matching.circuits import Degeneracy
from isobasin.model import Blocks, Model, Source, open_pair
from isobasin.plain import Plain, finite, plain
from isobasin.symmetries.feedforward import FeedForwardGroup, FeedForwardWeights
from isobasin.verbs.align import match_models
from isobasin.verbs.settings import Matching, Progress, Running, silent
from isobasin.verbs.turned import TURNED, added_inside, largest, near_mixed, rounded_terms, size_added, turned_ends
from isobasin.verification import check_alike, known_feedforwards, rest_of

# How many units in the last place of the stored type two scaled copies of a unit may be apart: either is rounded once,
# which is half of one, and scales are estimated from what is rounded.
_SCALE_ROUNDING = 2


@dataclass(frozen=True)
class LayerEvidence(Plain):
    """What one block says.

    Attributes:
        layer: Index of the layer.
        equivalent: Whether circuits and biases are equal up to rounding.
        circuit_error: Relative difference of the circuits of the worst head, heads in matched order.
        bias_error: Relative difference of what value and output biases add together.
        tolerance: What rounding of the stored weights explains of `circuit_error`.
        distance: Distance of the weights after the move, relative to the reference's norm.
        condition: Condition number of the move.
        head_permutation: Which of b's query heads each of a's is.
        degeneracy: Where the theorem's conditions fail in `a`. With duplicate heads "not equivalent" is no proof;
            with rank-deficient ones equal functions may have no group element between them.
    """

    layer: int
    equivalent: bool
    circuit_error: float
    bias_error: float
    tolerance: float
    distance: float
    condition: float
    head_permutation: tuple[int, ...]
    degeneracy: Degeneracy

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found, failing = {k: v for k, v in vars(self).items() if k not in ("degeneracy", "distance")}, self.degeneracy
        also = {"rank_deficient": failing.rank_deficient, "duplicate_heads": failing.duplicates}
        found["relative_distance"] = self.distance
        return finite(plain(found | also))


@dataclass(frozen=True)
class Equivalence(Plain):
    """Whether a group element carries `b` to `a`, with the evidence.

    Attributes:
        layers: Every attention block.
        other_tensors: Names of tensors outside attention that differ, or that only one model has, as the reference
            stores them where it has them; those of feed-forward blocks only where no move of the block's units
            explains it.
        configuration: Entries of config.json in which the two mean something else.
        feedforward: Layers whose feed-forward blocks differ by a move of their units.
        stream: The group whose map carries b's residual stream to a's; None where it is the same without.
        shapes: Of those other tensors that have another shape in either model, both shapes, a's first.
        device: Where the work was done.
    """

    layers: tuple[LayerEvidence, ...]
    other_tensors: tuple[str, ...]
    configuration: tuple[str, ...]
    feedforward: tuple[int, ...] = ()
    stream: str | None = None
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=lambda: {})
    device: str = "cpu"
    _also = ("equivalent", "conclusive")

    @property
    def equivalent(self) -> bool:
        """Whether everything agrees."""
        return all(layer.equivalent for layer in self.layers) and not (self.other_tensors or self.configuration)

    @property
    def conclusive(self) -> bool:
        """Whether the theorem's conditions hold, so that "no" is a proof and "yes" names a group element."""
        return not any(e.degeneracy.duplicates or e.degeneracy.rank_deficient for e in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = super().to_json()
        return found | {"moved_feedforward": found.pop("feedforward"), "moved_stream": found.pop("stream")}


def equivalent(
    a: Source, b: Source, *, device: str = "cpu", allow_pickle: bool = False, progress: Progress = silent
) -> Equivalence:
    """Is there a group element that carries `b` to `a`?

    Head by head, equal circuits (`Q K^T` and `V O^T`, plane by plane under rotary positions) are equal functions,
    and with full column rank and pairwise distinct heads the converse holds (arXiv 2606.17830, Theorems 2.1, 4.1,
    4.2). Feed-forward blocks may differ by a permutation of their units, and by scales where the activation lets them
    pass. Where anything else differs and the residual stream is known, whole models are matched: if a map of the stream
    brings them together, the rest is compared after it. Otherwise everything else must be equal as it is.

    Args:
        a: The reference: folder, hub id, or transformers model.
        b: The other model.
        device: Where matching runs.
        allow_pickle: Load pickled weights, with `weights_only`.
        progress: Called as the work goes on.
    """
    with open_pair(a, b, allow_pickle=allow_pickle, even=True) as (one, other):
        return equivalent_models(one, other, Running(device=device, verify=False, progress=progress))


def equivalent_models(a: Model, b: Model, running: Running) -> Equivalence:
    """`equivalent` for two open models that are comparable."""
    unequal = list(_other_tensors(a, b))
    turned = turned_ends(a, b, set(unequal), running)
    if turned is not None:
        unequal = list(_other_tensors(a, b, turned))
    ends = turned or (a, b)
    alignment = match_models(*ends, Matching(max_condition=math.inf), running)
    evidence = tuple(_evidence(*ends, i, layer) for i, layer in enumerate(alignment.layers))
    moved = _moved_feedforwards(a, ends, set(unequal), running.device)
    explained = {name for names in moved.values() for name in names}
    unexplained = {name: _stored(a, b, name) for name in unequal if name not in explained}
    found = Equivalence(
        evidence,
        (*unexplained.values(), *unlike_modules(a.checkpoint.folder, b.checkpoint.folder)),
        tuple(difference.entry for difference in differences(a.canonical.description, b.canonical.description)),
        tuple(moved),
        None if turned is None else str(turned[1].plan.group),
        {stored: shapes for name, stored in unexplained.items() if (shapes := _unlike_shapes(a, b, name))},
        running.device,
    )
    if found.equivalent and a.checkpoint.config != b.checkpoint.config:
        check_alike(a, b)
    return found


def _stored(a: Model, b: Model, name: str) -> str:
    """What the reference, or else the other model, calls a tensor that it has by itself."""
    return a.view.tensors.get(name) or b.view.stored(name)


def _unlike_shapes(a: Model, b: Model, name: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of a tensor in both models, if both have it and they differ."""
    stored = a.view.find(name), b.view.find(name)
    if stored[0] is None or stored[1] is None:
        return None
    shapes = a.checkpoint.tensors[stored[0]].shape, b.checkpoint.tensors[stored[1]].shape
    return None if shapes[0] == shapes[1] else shapes


def _evidence(a: Blocks, b: Blocks, index: int, layer: AttentionMove) -> LayerEvidence:
    """What the matched blocks of one layer say."""
    group = layer.group
    block, other = a.specification.attention[index], b.specification.attention[index]
    reference, model = block.read(a.stored(block)), other.read(b.stored(other))
    moved = group.act(layer.element, model)
    stored = (reference, a.dtype(), rounded_terms(a, block)), (model, b.dtype(), rounded_terms(b, other))
    tolerance = circuits.tolerance(group, *stored)
    error, bias = (
        float(circuits.circuit_error(group, reference, moved, circuits.score_tolerance(group, *stored))),
        float(circuits.bias_error(group, reference, moved, circuits.bias_tolerance(group, *stored))),
    )
    size = math.sqrt(sum(float(t.square().sum()) for t in reference.tensors().values()))
    return LayerEvidence(
        layer.layer,
        error <= tolerance and bias <= 10 * tolerance,
        error,
        bias,
        tolerance,
        layer.statistics.distance_after / size if size else math.inf,
        layer.statistics.condition,
        tuple(int(i) for i in layer.element.head_permutation()),
        circuits.degeneracy(group, reference, max(1e-6, torch.finfo(a.dtype()).eps)),
    )


def _moved_feedforwards(a: Model, ends: tuple[Blocks, Blocks], unequal: set[str], device: str) -> dict[int, set[str]]:
    """The unequal feed-forward blocks that a group element carries from the second end to the first, which is a.

    Returns:
        Their canonical names by layer.
    """
    moved: dict[int, set[str]] = {}
    for ours, theirs in zip(*map(known_feedforwards, ends), strict=False):
        names = {a.view.canonical[name] for name in ours.shapes()}
        alike = ours.group == theirs.group and ours.width == theirs.width and ours.biases == theirs.biases
        if not alike or not names & unequal:
            continue
        stored = ends[0].stored(ours), ends[1].stored(theirs)
        types = {tensor.dtype for tensors in stored for tensor in tensors.values()}
        eps = max(map(eps_of, types))
        # A permutation alone rounds nothing.
        scaled, floor, unlike = ours.group.scaled, circuits.FLOORS[torch.float64], len(types) > 1
        slack = max(_SCALE_ROUNDING * eps, floor) if scaled else eps * unlike
        least = max(map(smallest, types)) if scaled or unlike else 0.0
        reference, model = ours.read(stored[0], device), theirs.read(stored[1], device)
        added = added_inside(ends, (ours, theirs))
        kind = coarser(*(end.dtype() for end in ends))
        if _carried(ours.group, reference, model, slack, least, added, isinstance(ends[1], Turned), kind):
            moved[ours.layer] = moved.get(ours.layer, set()) | names
    return moved


def _carried(
    group: FeedForwardGroup,
    reference: FeedForwardWeights,
    model: FeedForwardWeights,
    slack: float,
    least: float,
    absorbed: Mapping[str, float],
    turned: bool,
    dtype: torch.dtype,
) -> bool:
    """Whether the best move makes every weight equal up to rounding.

    Args:
        group: Of the block.
        reference: Its weights in the one model.
        model: And in the other.
        slack: How far a value may be off, relative to it.
        least: How far any value may be off.
        absorbed: The largest that a normalisation's bias adds to a bias, by role.
        turned: Whether it was brought into the reference's basis, which mixes all values.
        dtype: The type that it is stored in.
    """
    near = max(slack, TURNED[dtype]) if turned else slack
    sizes = [feedforward.unit_sizes(group, weights) for weights in (reference, model)]
    if not torch.allclose(*sizes, rtol=1e-6 + 100 * near, atol=1e-6 * float(sizes[0].max())):
        return False  # no need of an assignment to see that they are others
    match = feedforward.match_feedforward(group, reference, model)
    moved = match.moved.tensors()
    # The smallest numbers are rounded by as much in either, and the model's scaled with their units.
    smallest = group.act(match.element, model.map(lambda x: torch.full_like(x, least))).tensors()
    added = dict(absorbed) | {n: largest(x) for n, x in model.tensors().items() if n in group.shifted}
    return all(
        near_mixed(x, moved[n], dtype, added.get(n, 0.0))
        if turned or n in group.shifted
        else _near(x, moved[n], slack, least + smallest[n].abs())
        for n, x in reference.tensors().items()
    )


def _near(x: Tensor, y: Tensor, slack: float, least: Tensor | float = 0.0) -> bool:
    """Whether all values agree, each by itself: up to this much relative to it, or up to the least."""
    return bool(((x - y).abs() <= slack * x.abs() + least).all())


def _other_tensors(a: Model, b: Model, turned: tuple[Turned, Turned] | None = None) -> Iterator[str]:
    """Canonical names of tensors outside attention that aren't equal up to one rounding of the coarser type.

    With both in one basis, those along the residual stream are allowed the rounding of that.
    """
    along = turned[1].plan.names() if turned else set[str]()
    for name in sorted(rest_of(a).keys() | rest_of(b).keys()):
        stored = a.view.find(name), b.view.find(name)
        if stored[0] is None or stored[1] is None or _unlike_shapes(a, b, name):
            yield name
        elif turned and stored[1] in along:
            ends = tuple(zip(turned, (stored[0], stored[1]), strict=True))
            axis = next((item.axis for item in turned[1].plan.axes() if item.tensor == stored[1]), -1)
            x, y = (end.read([own])[own].cpu().movedim(axis, -1) for end, own in ends)
            added = max(size_added(end, own) for end, own in ends)
            if not near_mixed(x, y, coarser(a.dtype(), b.dtype()), added):
                yield name
        elif not _same(a, b, name):
            yield name


def _same(a: Model, b: Model, name: str) -> bool:
    """Whether a tensor's values are equal up to one rounding of the coarser type.

    Raises:
        TensorError: They differ, and are not all finite.
    """
    x, y = (model.canonical.read([name])[name] for model in (a, b))
    if not x.is_floating_point() or not y.is_floating_point():
        return torch.equal(x, y)
    # Of numbers near a type's smallest rounding leaves no digits.
    types = (x.dtype, y.dtype) if x.dtype != y.dtype else ()
    eps, least = (max(map(of, types), default=0.0) for of in (eps_of, smallest))
    x, y = x.double(), y.double()
    if _near(x, y, eps, least):
        return True
    check_finite({a.view.stored(name): x}, a.name)
    check_finite({b.view.stored(name): y}, b.name)
    return False
