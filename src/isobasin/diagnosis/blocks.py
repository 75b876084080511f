"""One block of a conversion beside the original's: which defects it has, and the block without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.choices import Method
from isobasin.diagnosis import parts
from isobasin.diagnosis.atoms import Parts, shift
from isobasin.diagnosis.catalogue import Reading, defects
from isobasin.diagnosis.findings import Finding
from isobasin.diagnosis.moves import Gap, gap
from isobasin.diagnosis.rounding import coarser, grain, relative, state, tolerance
from isobasin.diagnosis.search import Memory, Step, explain, relative_errors

AnyBlock = AttentionBlock | FeedForward
# Roles that differ by less than this of the original are no block in another gauge.
_FAR = 0.3
# Blocks in which no defect explained circuits, after which they aren't tried again.
_PATIENCE = 2


@dataclass(frozen=True)
class Examined:
    """What was found at one place.

    Attributes:
        findings: Defects.
        tensors: The conversion's tensors without them, by name, in its types.
        rounded: Tensors that differ by a rounding, and the type.
        moved: Whether what is left is a move of the block's group.
        left: Tensors that differ by something else, and by how much, relative.
    """

    findings: tuple[Finding, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=lambda: {})
    rounded: Mapping[str, torch.dtype] = field(default_factory=lambda: {})
    moved: bool = False
    left: Mapping[str, float] = field(default_factory=lambda: {})


@dataclass
class Kind:
    """What was learned of blocks of one kind.

    Attributes:
        rows: Of the search on weights.
        failed: In how many blocks no defect explained circuits.
    """

    rows: Memory = field(default_factory=Memory)
    failed: int = 0


@dataclass(frozen=True)
class _Block:
    """Two blocks: the original's and the conversion's.

    Attributes:
        block: What the tensors are.
        x: The original's, stored.
        y: The conversion's, stored.
        kind: A type that holds the values of both.
    """

    block: AnyBlock
    x: Mapping[str, Tensor]
    y: Mapping[str, Tensor]
    kind: torch.dtype

    def gap(self, found: Parts, method: Method = Method.gauss_newton) -> Gap:
        """What a move leaves of the difference."""
        wide = {name: tensor.double() for name, tensor in self.y.items()}
        return gap(self.block, self.x, parts.write(self.block, wide, found), self.kind, method)

    def ratios(self, found: Parts) -> dict[str, float]:
        """The same, over what rounding explains."""
        return self.gap(found, Method.balanced).ratios()


def examine(
    block: AnyBlock, x: Mapping[str, Tensor], y: Mapping[str, Tensor], norms: Sequence[Reading], known: Kind
) -> Examined:
    """Find the defects of one block.

    Args:
        block: What the tensors are.
        x: The original's stored tensors.
        y: The conversion's, of the same shapes; zeros for those that it lacks.
        norms: The normalisations that the block reads.
        known: What was learned of blocks of this kind; it is added to.
    """
    if all(state(one, y[name], grain([y[name]])) is True for name, one in x.items()):
        return Examined(tensors=y)
    pair = _Block(block, x, y, coarser(grain(x.values()), grain(y.values())))
    ours, theirs = parts.read(block, x), parts.read(block, y)
    for norm in norms:
        if norm.bias is not None:
            ours |= {shift(role, norm.name): ours[role] @ norm.bias[:, None] for role in norm.roles}
    allowed = tolerance(pair.kind)
    errors = relative_errors(ours, theirs)
    if max(errors.values()) <= allowed:
        return _done(pair, theirs, [], None)
    found = pair.gap(theirs)
    if found.closed:
        return Examined(tensors=y, moved=True)
    atoms = defects(block, norms)
    steps = explain(atoms, parts.sampled(ours), parts.sampled(theirs), allowed, known.rows)
    mended = _replayed(steps, ours, theirs)
    if max(relative_errors(ours, mended).values()) <= allowed:
        return _done(pair, *_needed(pair, steps, ours, theirs))
    found = pair.gap(mended)
    if not found.closed and max(errors.values()) > _FAR and known.failed < _PATIENCE:
        tried = [atom for atom in atoms if atom.first or atom.restores]
        others = explain(tried, ours, theirs, 1.0, known.rows, pair.ratios)
        changed = _replayed(others, ours, theirs)
        again = pair.gap(changed)
        known.failed += not again.closed
        steps, mended, found = (others, changed, again) if again.closed else (steps, mended, found)
    if found.closed:
        return _done(pair, *_needed(pair, steps, ours, theirs))
    far = any(relative_errors(ours, mended)[role] > _FAR for role in block.projections)
    steps = [step for step in steps if not (far and step.atom.restores)]
    return _done(pair, _replayed(steps, ours, theirs), steps, None)


def _replayed(steps: Sequence[Step], x: Parts, y: Parts) -> Parts:
    """The conversion's parts with some defects undone, all of their columns."""
    for step in steps:
        undone = step.atom.undo(x, y)
        y = y if undone is None else {**y, **undone[0]}
    return y


def _needed(pair: _Block, steps: Sequence[Step], x: Parts, y: Parts) -> tuple[Parts, list[Step], Gap | None]:
    """The defects without those that a move of the group explains as well, and what the move leaves."""
    for kind in dict.fromkeys(step.atom.defect for step in steps):
        fewer = [step for step in steps if step.atom.defect is not kind]
        if fewer and pair.gap(_replayed(fewer, x, y)).closed:
            steps = fewer
    mended = _replayed(steps, x, y)
    exact = max(relative_errors(x, mended).values()) <= tolerance(pair.kind)
    return mended, list(steps), None if exact else pair.gap(mended)


def _done(pair: _Block, mended: Parts, steps: Sequence[Step], moved: Gap | None) -> Examined:
    """What was found, with residuals; `moved` is what a move leaves, if one is needed."""
    tensors = parts.write(pair.block, pair.y, mended)
    divided = {name for step in steps if step.atom.fitted for name in _names(pair.block, step.roles)}
    rounded: dict[str, torch.dtype] = {}
    left: dict[str, float] = {}
    for name, x in pair.x.items() if moved is None else ():
        found = state(x, tensors[name], grain([pair.y[name]]), divided=name in divided)
        if isinstance(found, torch.dtype):
            rounded[name] = found
        elif not found:
            left[name] = relative(x, tensors[name])
    residual = None if moved is None else max(moved.errors.values())
    findings = tuple(_finding(pair, step, tensors, residual) for step in steps)
    return Examined(findings, tensors, rounded, moved is not None, left)


def _finding(pair: _Block, step: Step, tensors: Mapping[str, Tensor], moved: float | None) -> Finding:
    """One defect in words."""
    names = _names(pair.block, step.roles)
    stacked = partial(_flat, names)
    before, after = (relative(stacked(pair.x), stacked(other)) for other in (pair.y, tensors))
    after = None if step.atom.restores else after if moved is None else moved
    layer, words = (pair.block.layer,), step.atom.words + step.more
    return Finding(step.atom.defect, words, layer, names, before, after, step.atom.fix)


def _names(block: AnyBlock, roles: Sequence[str]) -> tuple[str, ...]:
    """The tensors that roles lie in."""
    found: list[str] = []
    for role in roles:
        projection = {**block.projections, **block.others}.get(role.removesuffix("_bias"))
        assert projection is not None
        name = projection.bias if role.endswith("_bias") else projection.weight
        found += [] if name is None else [name]
    return tuple(dict.fromkeys(found))


def _flat(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])
