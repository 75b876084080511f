"""Which layer of the original each layer of a conversion is, by what no order of rows changes: sizes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isobasin.architectures.blocks import Block
from isobasin.diagnosis.findings import Defect, Finding

_NUMBER = re.compile(r"\.\d+(?=\.)")
# Relative difference of two norms that counts as none: rounding to bfloat16 changes them by less.
_SAME = 2e-3
# The share of a layer's tensors that must have the sizes of another layer's.
_SHARE = 0.5

Norms = Mapping[str, Mapping[str, float]]
"""Of every layer, by the beginning of its names, the norms of its tensors by the rest of theirs."""


def beginnings(blocks: Sequence[Block]) -> dict[str, int]:
    """What the names of every layer begin with, and which layer that is."""
    layers = {block.layer for block in blocks}
    for depth in range(1, 4):
        found = {start: block.layer for block in blocks if (start := _start(block.name, depth)) is not None}
        if len(found) == len(layers) == len(set(found.values())):
            return found
    return {}


def _start(name: str, depth: int) -> str | None:
    ends = [match.end() for match in _NUMBER.finditer(f"{name}.")]
    return f"{name}."[: ends[depth - 1] + 1] if len(ends) >= depth else None


def split(name: str, starts: Iterable[str]) -> tuple[str, str] | None:
    """The beginning of a tensor's name that is a layer's, and the rest; None outside of layers."""
    found = next((start for start in starts if name.startswith(start)), None)
    return None if found is None else (found, name.removeprefix(found))


def patterns(starts: Iterable[str]) -> re.Pattern[str]:
    """What the names of any layer begin with, whatever its number."""
    forms = {_NUMBER.sub(lambda match: "@" * len(match[0]), start) for start in starts}
    return re.compile("|".join(re.sub("@+", r"\\.\\d+", re.escape(form)) for form in sorted(forms)) or r"(?!)")


@dataclass(frozen=True)
class Order:
    """Which layer of a conversion stands for each of the original's.

    Attributes:
        source: From the beginning of the original's names to that of the conversion's; None where a layer is missing.
        findings: What is wrong with the order.
        counts: How many layers the two have.
    """

    source: Mapping[str, str | None]
    findings: tuple[Finding, ...]
    counts: tuple[int, int]

    def explains(self, a: object, b: object) -> bool:
        """Whether two entries of configurations differ as the numbers of layers do."""
        sizes = tuple(len(x) if isinstance(x, list) else x for x in (a, b))
        return bool(self.findings) and sizes == self.counts and sizes[0] != sizes[1]


def order(ours: Norms, theirs: Norms, numbers: Mapping[str, int]) -> Order:
    """Find the order of layers.

    Args:
        ours: Norms of the original's layers.
        theirs: Those of the conversion's.
        numbers: The number of each of the original's layers.
    """
    twins = {start: _twin(start, norms, ours) for start, norms in theirs.items()}
    source: dict[str, str | None] = {}
    for start in ours:
        from_ = [other for other, twin in twins.items() if twin == start]
        source[start] = start if start in from_ else from_[0] if from_ else None
    # A layer that none is like was changed, or drawn anew: it is the one in its place.
    spare = [start for start in theirs if twins[start] is None]
    for start, found in source.items():
        if found is None and start in spare:
            source[start] = start
    words: list[tuple[str, list[str]]] = []
    missing = [start for start, found in source.items() if found is None]
    twice = [start for start in ours if sum(twin == start for twin in twins.values()) > 1]
    moved = [start for start, found in source.items() if found not in (start, None)]
    if missing:
        words.append(("is missing", missing))
    if twice:
        words.append(("is there twice", twice))
    if moved and not (missing or twice):
        words.append(("lie in another order", moved))
    fix = "number the layers as the original does"
    return Order(
        source, tuple(_finding(what, starts, numbers, fix) for what, starts in words), (len(ours), len(theirs))
    )


def _finding(what: str, starts: Sequence[str], numbers: Mapping[str, int], fix: str) -> Finding:
    layers = tuple(numbers[start] for start in starts)
    text = what if not what.startswith("is") or len(layers) == 1 else what.replace("is", "are", 1)
    return Finding(Defect.layers, f"layer{'s' * (len(layers) > 1)} {text}", layers, (), None, None, fix)


def _twin(start: str, norms: Mapping[str, float], ours: Norms) -> str | None:
    """The original's layer of the same sizes: the one in its place unless another is more alike."""
    scores = {other: _alike(norms, there) for other, there in ours.items()}
    own = scores.get(start, 0.0)
    best = max(scores, key=scores.__getitem__, default=start)
    if scores.get(best, 0.0) >= _SHARE and scores[best] > own:
        return best
    return start if own > 0 and own >= _SHARE else None


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The share of two layers' tensors that are there in both, and of one size."""
    same = [abs(size - other[name]) <= _SAME * size for name, size in one.items() if name in other]
    return sum(same) / max(len(one), len(other)) if same else 0.0
