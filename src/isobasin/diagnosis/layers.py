"""Which layer of the original each layer of a conversion is.

By what no order of rows changes, the sizes of its tensors; and by what no move of its blocks does, their invariants.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from isobasin.architectures.blocks import Block
from isobasin.diagnosis.findings import Defect, Finding
from isobasin.diagnosis.rounding import relative

_NUMBER = re.compile(r"\.\d+(?=\.)")
# Relative difference of two norms that counts as none: rounding to bfloat16 changes them by less.
SIZES = 2e-3
# Likewise of the invariants of two blocks, of which one may have been moved before it was rounded.
INVARIANTS = 1e-2
# The share of an original layer's traits that another must have to be that layer.
_SHARE = 0.5

Traits = Mapping[str, Mapping[str, Tensor]]
"""Of every layer, by the beginning of its names, norms of its tensors or invariants of its blocks, by name."""
Likeness = Mapping[str, Mapping[str, float]]
"""Of every layer of a conversion how much it is like each of the original's: the share of traits that agree."""


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

    def name(self, name: str) -> str | None:
        """What the conversion calls what stands for one of the original's tensors; None where its layer is missing."""
        cut = split(name, self.source)
        start = None if cut is None else self.source[cut[0]]
        return name if cut is None else None if start is None else start + cut[1]

    def explains(self, a: object, b: object) -> bool:
        """Whether two entries of configurations differ as the numbers of layers do."""
        sizes = tuple(len(x) if isinstance(x, list) else x for x in (a, b))
        return bool(self.findings) and sizes == self.counts and sizes[0] != sizes[1]


def order(sizes: Likeness, invariants: Likeness, numbers: Mapping[str, int]) -> Order:
    """Find the order of layers.

    Args:
        sizes: How much layers are alike by the norms of their tensors.
        invariants: Likewise by the invariants of their blocks; empty where sizes say everything.
        numbers: The number of each of the original's layers.
    """
    twins = {start: _twin(start, found, invariants.get(start, {})) for start, found in sizes.items()}
    source: dict[str, str | None] = {}
    for start in numbers:
        from_ = [other for other, twin in twins.items() if twin == start]
        source[start] = start if start in from_ else from_[0] if from_ else None
    # A layer that none is like was changed, or drawn anew: it is the one in its place.
    spare = [start for start, twin in twins.items() if twin is None]
    for start, found in source.items():
        if found is None and start in spare:
            source[start] = start
    words: list[tuple[str, list[str]]] = []
    missing = [start for start, found in source.items() if found is None]
    twice = [start for start in numbers if sum(twin == start for twin in twins.values()) > 1]
    moved = [start for start, found in source.items() if found not in (start, None)]
    if missing:
        words.append(("is missing", missing))
    if twice:
        words.append(("is there twice", twice))
    if moved and not (missing or twice):
        words.append(("lie in another order", moved))
    fix = "number the layers as the original does"
    return Order(
        source, tuple(_finding(what, starts, numbers, fix) for what, starts in words), (len(numbers), len(twins))
    )


def _finding(what: str, starts: Sequence[str], numbers: Mapping[str, int], fix: str) -> Finding:
    layers = tuple(numbers[start] for start in starts)
    text = what if not what.startswith("is") or len(layers) == 1 else what.replace("is", "are", 1)
    return Finding(Defect.layers, f"layer{'s' * (len(layers) > 1)} {text}", layers, (), None, None, fix)


def _twin(start: str, sizes: Mapping[str, float], invariants: Mapping[str, float]) -> str | None:
    """The original's layer that a conversion's is: the one in its place unless another is more alike."""
    if invariants:
        best = start if invariants.get(start) else max(invariants, key=invariants.__getitem__)
        if invariants[best] >= _SHARE:
            return best
    own = sizes.get(start, 0.0)
    best = max(sizes, key=sizes.__getitem__, default=start)
    if sizes.get(best, 0.0) >= _SHARE and sizes[best] > own:
        return best
    return start if own > 0 and own >= _SHARE else None


def likeness(ours: Traits, theirs: Traits, allowed: float) -> Likeness:
    """The share of the traits of each of the original's layers that each layer of a conversion has too."""
    return {
        start: {other: _share(there, found, allowed) for other, there in ours.items()}
        for start, found in theirs.items()
    }


def _share(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], allowed: float) -> float:
    both = [(x, theirs[name]) for name, x in ours.items() if name in theirs]
    return sum(x.shape == y.shape and relative(x, y) <= allowed for x, y in both) / max(1, len(ours))
