"""The known defects of conversions, and what is said of one that was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from isobasin.choices import Choice
from isobasin.plain import Plain


class Defect(Choice):
    """What may have gone wrong in a conversion."""

    rotary_order = "rotary order", "the features that rotate lie in half order where pairs are expected, or in reverse"
    fused_order = "fused order", "rows of projections that were fused are split or ordered in another way"
    head_order = "head order", "whole heads of a projection lie in another order than those that they belong to"
    feature_order = "feature order", "rows go through heads first and then through features, or in reverse"
    transposed = "transposed", "a matrix was transposed, or reshaped where it had to be transposed"
    lost = "lost", "a tensor is missing, or all zeros, where the original has values"
    swapped = "swapped", "a tensor has the values of another one"
    folded = "folded", "the gain of a normalisation was multiplied into what reads it, and kept, or divided out"
    unfolded = "unfolded", "the gain of a normalisation was set to its neutral value, and is in no weight"
    gain_offset = "gain offset", "gains are stored one too high or too low: the convention 1 + gain on one side only"
    scale = "scale", "a projection or an embedding is multiplied by a number, such as the scale of queries once more"
    head = "head", "the readout is the embedding, or isn't, unlike in the original"
    rows = "rows", "rows of a table lie in another order, or there are more or fewer"
    positions = "positions", "rows of a table are off by an offset, as where the first positions are reserved"
    layers = "layers", "layers lie in another order, or one is there twice or missing"
    configuration = "configuration", "an entry of config.json means another function"
    rounding = "rounding", "values were rounded to a narrower type, and nothing else"


@dataclass(frozen=True)
class Finding(Plain):
    """One defect, at the places where it is.

    Attributes:
        defect: Which.
        words: What was found.
        layers: Layers of the original; empty outside of layers.
        tensors: The tensors that it is in, as the original stores them; entries of config.json.
        before: Relative difference of these from the original's: the norm of the difference over the norm.
        after: The same once the defect is undone; None where nothing of B is left to compare.
        fix: What to do in the conversion, in one line.
    """

    defect: Defect
    words: str
    layers: tuple[int, ...]
    tensors: tuple[str, ...]
    before: float | None
    after: float | None
    fix: str


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of the same words in several places as one, with the worst residuals."""

    def key(finding: Finding) -> tuple[str, str]:
        return finding.defect, finding.words

    found: list[Finding] = []
    for _, group in groupby(sorted(findings, key=key), key):
        same = list(group)
        found.append(
            replace(
                same[0],
                layers=tuple(sorted({layer for one in same for layer in one.layers})),
                tensors=tuple(dict.fromkeys(name for one in same for name in one.tensors)),
                before=_worst(one.before for one in same),
                after=_worst(one.after for one in same),
            )
        )
    return tuple(sorted(found, key=lambda one: (list(Defect).index(one.defect), one.layers, one.words)))


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
