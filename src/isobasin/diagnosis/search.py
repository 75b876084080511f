"""Which defects explain the difference of two blocks: one after the other, or two at once.

Each role's difference is measured relative to the original, and more than all of it counts as all of it. A defect is
accepted if it leaves less than its share (`Atom.share`) of the differences of the roles that it is in. Where none is,
and roles are far from the original's, all pairs of defects are tried: two in one role may show only together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from isobasin.diagnosis.atoms import Atom, Key, Parts

Errors = dict[str, float]
Measure = Callable[[Parts], Errors]
# A role that differs by less than this of the original's norm is not far.
_FAR = 0.3
# Blocks of a kind in which pairs explained nothing, after which they aren't tried again.
_PATIENCE = 2
_MOST = 6


def relative_errors(x: Parts, y: Parts, roles: Iterable[str] | None = None) -> Errors:
    """Of every role, or of these, the norm of the difference over the original's, at most 1."""
    found: Errors = {}
    for role in x if roles is None else roles:
        if not role.endswith("'"):
            size, gap = float(x[role].norm()), float((x[role] - y[role]).norm())
            found[role] = min(1.0, gap / size) if size else float(gap > 0)
    return found


@dataclass(frozen=True)
class Step:
    """A defect that explains a difference.

    Attributes:
        atom: The defect.
        more: What was fitted, in words.
        roles: The roles that it changed.
    """

    atom: Atom
    more: str
    roles: tuple[str, ...]


@dataclass
class Memory:
    """What was found in earlier blocks of a kind: it is tried first, and what wasn't found not again.

    Attributes:
        pairs: Keys of defects that explained a difference together.
        failed: In how many blocks pairs explained nothing.
    """

    pairs: list[tuple[Key, Key]] = field(default_factory=lambda: [])
    failed: int = 0


@dataclass(frozen=True)
class _Try:
    """Some defects taken back, and how much that brings the difference down."""

    steps: tuple[Step, ...]
    parts: Parts
    gain: float


@dataclass(frozen=True)
class _Difference:
    """Two blocks of which defects explain the difference.

    Attributes:
        x: The original's parts.
        y: The conversion's.
        errors: How they differ.
        measure: What else is brought down than the difference of every role; None for that.
    """

    x: Parts
    y: Parts
    errors: Errors
    measure: Measure | None

    @classmethod
    def of(cls, x: Parts, y: Parts, measure: Measure | None) -> _Difference:
        """The difference of these."""
        return cls(x, y, relative_errors(x, y) if measure is None else measure(y), measure)

    def accepted(self, steps: tuple[Step, ...], parts: Parts, share: float) -> _Try | None:
        """What is left after some steps, if it is little enough, of the roles in which they are."""
        if self.measure is None:
            roles = {role for step in steps for role in step.roles}
            after = relative_errors(self.x, parts, roles)
        else:
            after = self.measure(parts)
        before, left = sum(self.errors[role] for role in after), sum(after.values())
        return _Try(steps, parts, before - left) if before and left <= share * before else None

    def undone(self, atom: Atom, y: Parts) -> tuple[Step, Parts] | None:
        """A defect taken back."""
        undone = atom.undo(self.x, y)
        return None if undone is None else (Step(atom, undone[1], tuple(undone[0])), {**y, **undone[0]})


def explain(
    atoms: Sequence[Atom], x: Parts, y: Parts, allowed: float, memory: Memory, measure: Measure | None = None
) -> list[Step]:
    """The defects that explain how y differs from x, in the order in which they are undone.

    Args:
        atoms: All known ones.
        x: The original's parts.
        y: The conversion's.
        allowed: Errors that count as rounding.
        memory: Of blocks of this kind.
        measure: What is brought down, if not the difference of every role; pairs are not tried then.
    """
    found: list[Step] = []
    pair = _Difference.of(x, y, measure)
    while len(found) < _MOST and any(error > allowed for error in pair.errors.values()):
        tries = list(_singles(atoms, pair, allowed))
        if not tries and measure is None:
            tries = _pairs(atoms, pair, memory)
        if not tries:
            break
        best = max(tries, key=lambda one: one.gain)
        found += best.steps
        pair = _Difference.of(x, best.parts, measure)
    return found


def _singles(atoms: Iterable[Atom], pair: _Difference, allowed: float) -> Iterator[_Try]:
    """Every defect that explains enough of a difference by itself."""
    for atom in atoms:
        if pair.measure is None and not any(pair.errors.get(role, 0) > allowed for role in atom.roles):
            continue
        undone = pair.undone(atom, pair.y)
        found = None if undone is None else pair.accepted((undone[0],), undone[1], atom.share)
        if found is not None:
            yield found


def _pairs(atoms: Sequence[Atom], pair: _Difference, memory: Memory) -> list[_Try]:
    """Every two defects that explain together what neither does, those of earlier blocks first."""
    far = {role for role, error in pair.errors.items() if error > _FAR}
    near = [atom for atom in atoms if far.intersection(atom.roles) and atom.first]
    by_key = {atom.key: atom for atom in near}
    known = [(by_key[one], by_key[two]) for one, two in memory.pairs if one in by_key and two in by_key]
    found = list(_tried(known, pair))
    if near and not found and memory.failed < _PATIENCE:
        found = list(_tried(permutations(near, 2), pair))
        memory.failed = 0 if found else memory.failed + 1
    if found:
        best = max(found, key=lambda one: one.gain)
        memory.pairs.append((best.steps[0].atom.key, best.steps[1].atom.key))
    return found


def _tried(pairs: Iterable[tuple[Atom, Atom]], pair: _Difference) -> Iterator[_Try]:
    """Those of some pairs that are accepted; defects of roles apart show by themselves."""
    last: tuple[Atom, tuple[Step, Parts] | None] | None = None
    for first, second in pairs:
        if not set(first.roles) & set(second.roles):
            continue
        if last is None or last[0] is not first:
            last = first, pair.undone(first, pair.y)
        once = last[1]
        twice = None if once is None else pair.undone(second, once[1])
        if once is None or twice is None:
            continue
        found = pair.accepted((once[0], twice[0]), twice[1], max(first.share, second.share))
        if found is not None:
            yield found
