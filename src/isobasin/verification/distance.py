"""How far outputs differ, and what that says: the figures of a comparison, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isobasin.plain import Plain

# How many times what one rounding changes counts as rounding, in the root mean square and as distributions; single
# values scatter more. Calibrated on trained checkpoints: docs/verification.md.
FACTOR = 2.5
FACTOR_OF_LARGEST = 4.0
# A gauge in which one rounding changes more than this many times what it changes in another counts no more than that:
# there the function is lost, however well rounding explains it.
AMPLIFICATION = 4.0
# Up to how many times what one rounding explains further ones are tried: now and then rounding flips what saturated
# heads attend to, or, with a much larger effect, which experts are chosen.
NEAR, NEAR_OF_CHOICES = 4.0, 64.0
# What arithmetic alone leaves, relative: transformers keeps some steps in float32 whatever the model's type, and errors
# grow with depth. By the type that the models run in.
FLOORS = {torch.float64: 1e-5, torch.float32: 1e-4}

# Values at once.
_PIECE = 2**16

OPENED = ", all taking part"
"""Ends the names of outputs of an opened model, and the labels of its inputs."""

Label = tuple[str, str]
"""Name of an output, and of the input that it is an output on."""


@dataclass(frozen=True)
class Distance(Plain):
    """How far two models' outputs are from each other.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: The same over the largest absolute value of that output, worst output.
        rms: Root of the summed squares of the differences over that of the values, worst output.
        kl: Divergence of the second model's distributions from the first's, in nats, the mean over all positions of
            the worst logits; None if there are no logits.
        shift: The change of logits, relative to the largest, that such a divergence amounts to; None likewise.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    rms: float = 0.0
    kl: float | None = None
    shift: float | None = None

    @classmethod
    def between(cls, a: Mapping[Label, Tensor], b: Mapping[Label, Tensor]) -> Distance:
        """The distance of outputs; infinite where one is not a number, is misshapen, or isn't there in the second.

        Args:
            a: The outputs of the original, by name and then by what they are outputs on, which are taken together.
            b: Those of the other.
        """
        worst = cls()
        for name in dict.fromkeys(name for name, _ in a):
            if any(k not in b for k in a if k[0] == name):
                return APART
            worst = worst.worse(cls._of([(x, b[k]) for k, x in a.items() if k[0] == name], name))
        return worst

    @classmethod
    def of_most_alike(cls, a: Mapping[Label, Tensor], b: Mapping[Label, Tensor]) -> Distance:
        """The same at that half of each output's positions that differ least."""
        ours, theirs = dict(a), dict(b)
        for name in dict.fromkeys(name for name, _ in a):
            flat = {k: (x.flatten(0, -2), b[k].flatten(0, -2)) for k, x in a.items() if k[0] == name and x.ndim > 1}
            gaps = {k: torch.linalg.vector_norm(torch.where(x == y, 0.0, x - y), dim=-1) for k, (x, y) in flat.items()}
            middle = torch.cat(list(gaps.values())).median() if gaps else None
            for k, (x, y) in flat.items():
                ours[k], theirs[k] = x[gaps[k] <= middle], y[gaps[k] <= middle]
        return cls.between(ours, theirs)

    @classmethod
    def _of(cls, pairs: Sequence[tuple[Tensor, Tensor]], name: str) -> Distance:
        """The distance of one output on several inputs."""
        if any(x.shape != y.shape for x, y in pairs):
            return APART
        largest = size = squares = total = 0.0
        divergences: list[Tensor] = []
        for x, y in (piece for pair in pairs if pair[0].numel() for piece in _pieces(*pair)):
            # Scores of what is ruled out are -inf in both.
            gap = torch.where(x == y, 0.0, x - y).abs().nan_to_num(math.inf, math.inf)
            finite = torch.where(x.isfinite(), x, 0.0)
            largest, size = max(largest, float(gap.max())), max(size, float(finite.abs().max()))
            squares, total = (
                before + float(torch.linalg.vector_norm(part)) ** 2
                for before, part in ((squares, gap), (total, finite))
            )
            if name.endswith("logits") and x.ndim > 1 and x.shape[-1] > 1:
                divergences.append(_divergence(x, y).flatten())
        if not math.isfinite(largest):
            return APART
        found = cls(largest, _ratio(largest, size), _ratio(math.sqrt(squares), math.sqrt(total)))
        if not divergences:
            return found
        kl = max(float(torch.cat(divergences).mean()), 0.0)
        return replace(found, kl=kl, shift=_ratio(math.sqrt(2 * kl), size))

    def worse(self, other: Distance) -> Distance:
        """The larger of every figure."""
        return Distance(
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
            max(self.rms, other.rms),
            *(
                y if x is None else x if y is None else max(x, y)
                for x, y in ((self.kl, other.kl), (self.shift, other.shift))
            ),
        )

    def better(self, other: Distance, times: float) -> Distance:
        """The smaller of every figure, after the other's were multiplied; divergences grow with the square."""
        return Distance(
            min(self.max_abs, times * other.max_abs),
            min(self.max_rel, times * other.max_rel),
            min(self.rms, times * other.rms),
            None if self.kl is None or other.kl is None else min(self.kl, times**2 * other.kl),
            None if self.shift is None or other.shift is None else min(self.shift, times * other.shift),
        )

    @classmethod
    def pooled(cls, draws: Sequence[Distance]) -> Distance:
        """What several roundings change: the largest of the largest values, and means of the other figures."""

        def mean(values: Sequence[float | None], power: int) -> float | None:
            known = [value**power for value in values if value is not None]
            return (sum(known) / len(known)) ** (1 / power) if known else None

        return cls(
            max(draw.max_abs for draw in draws),
            max(draw.max_rel for draw in draws),
            mean([draw.rms for draw in draws], 2) or 0.0,
            mean([draw.kl for draw in draws], 1),
            mean([draw.shift for draw in draws], 2),
        )

    def allowed(self, floor: float) -> float:
        """The largest relative difference that one rounding which changes outputs this far explains."""
        return max(FACTOR_OF_LARGEST * self.max_rel, floor)

    def explains(self, found: Distance, floor: float) -> bool:
        """Whether one rounding that changes outputs this far explains another change of them."""
        return (
            found.max_rel <= self.allowed(floor)
            and found.rms <= max(FACTOR * self.rms, floor)
            and (found.shift or 0.0) <= max(FACTOR * (self.shift or 0.0), floor)
        )


APART = Distance(math.inf, math.inf, math.inf)
"""Of outputs that can't be compared, or are no numbers."""


@dataclass(frozen=True)
class Distances:
    """Of two models as they are, and opened (`isobasin.verification.opened`): each by itself, as either may be larger.

    Attributes:
        shown: Of what they compute.
        opened: Of what they compute once everything takes part; none where nothing was left out.
    """

    shown: Distance = Distance()
    opened: Distance = Distance()

    @classmethod
    def between(cls, a: Mapping[Label, Tensor], b: Mapping[Label, Tensor]) -> Distances:
        """As `Distance.between`, by the names of the outputs."""
        opened = [{key: x for key, x in a.items() if key[0].endswith(OPENED) == wanted} for wanted in (False, True)]
        return cls(*(Distance.between(some, b) for some in opened))

    def worse(self, other: Distances) -> Distances:
        """See `Distance.worse`."""
        return Distances(self.shown.worse(other.shown), self.opened.worse(other.opened))

    def better(self, other: Distances, times: float) -> Distances:
        """See `Distance.better`."""
        return Distances(self.shown.better(other.shown, times), self.opened.better(other.opened, times))

    @classmethod
    def pooled(cls, draws: Sequence[Distances]) -> Distances:
        """See `Distance.pooled`."""
        return cls(*(Distance.pooled([getattr(draw, which) for draw in draws]) for which in ("shown", "opened")))

    def explains(self, found: Distances, floor: float) -> bool:
        """See `Distance.explains`."""
        return self.shown.explains(found.shown, floor) and self.opened.explains(found.opened, floor)


def misshapen(a: Mapping[Label, Tensor], b: Mapping[Label, Tensor]) -> str | None:
    """Which output has another shape in the second model, in words; None where all are alike."""
    for label, x in a.items():
        shapes = ["x".join(map(str, y.shape)) for y in (x, b.get(label, x))]
        if shapes[0] != shapes[1]:
            return f"outputs differ in shape: {label[0]} is {shapes[0]} in one and {shapes[1]} in the other"
    return None


def _pieces(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two outputs of one shape in float64, some of their rows at a time, which stay in the processor's cache."""
    if x.ndim < 2:
        yield x.double(), y.double()
        return
    rows = max(1, _PIECE // x.shape[-1])
    for parts in zip(*(each.flatten(0, -2).split(rows) for each in (x, y)), strict=True):
        yield parts[0].double(), parts[1].double()


def _ratio(gap: float, size: float) -> float:
    """A difference relative to a size; none is none of any size."""
    return gap / size if size else (math.inf if gap else 0.0)


def _divergence(x: Tensor, y: Tensor) -> Tensor:
    """The divergences of the distributions that logits stand for, of every position."""
    ours, theirs = x.log_softmax(-1), y.log_softmax(-1)
    return torch.where(ours == theirs, 0.0, ours.exp() * (ours - theirs)).sum(-1)


@dataclass(frozen=True)
class Verification(Plain):
    """How far two models' outputs differ, and how far rounding alone explains.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: The same over the largest absolute value of that output, worst output.
        tolerance: What counts as equal, relative, of the largest difference.
        how: What was compared, in words, and at which positions if figures aren't of all of them.
        rms: Root of the summed squares of the differences over that of the values; None where it wasn't measured.
        kl: Divergence of the distributions, in nats; None where there are no logits.
        rounding: What one more rounding of the stored values that differ changes; None where it wasn't measured, as
            where arithmetic alone explains the difference.
        plain: What one rounding of all values to the coarser stored type changes in the better gauge of the two; None
            where it wasn't measured.
        explained: Whether rounding, or the tolerance that was asked for, explains every figure.
        unread: Stored tensors that transformers doesn't read: they were compared by value.
        unequal: Those of them whose values differ.
        device: Where models ran; None where blocks were compared wherever they were.
        misshapen: Which output has other shapes in the two, in words; None where all are alike.
        configuration: Entries of config.json in which the two mean something else, whatever these inputs show of it;
            only `verify` looks for them.
        rows: Rows of tables, as "7 of 'wte.weight'", that are others, whether or not any input looked them up; only
            where 16 bits are stored, whose rounding may hide them.
        parts: Parts, as "head 3 of 'model.layers.1'", that are others where heads, routers, experts and blocks are
            compared one by one; only where 16 bits are stored, and of every layer those of the first kind that has any.
        only_opened: Whether the two differ nowhere but once everything takes part: random inputs leave rows of tables,
            experts and units out, and rounding of all layers hides much.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    how: str
    rms: float | None = None
    kl: float | None = None
    rounding: Distance | None = None
    plain: Distance | None = None
    explained: bool = True
    unread: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()
    device: str | None = None
    misshapen: str | None = None
    configuration: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    only_opened: bool = False
    _also = ("equal",)

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance; never for values that are not numbers."""
        return self.max_rel <= self.tolerance and self.explained and not (self.unequal or self.rows or self.parts)

    @property
    def subject(self) -> str:
        """What differs by these figures."""
        return (
            "what random inputs leave out, or hardly show, differs; with everything taking part outputs"
            if self.only_opened
            else "outputs"
        )

    @property
    def which_parts(self) -> list[str]:
        """Which rows of tables and which other parts are others, in words; empty where none is."""
        return [
            f"{found[0]} differs{f', and {len(found) - 1} more' if found[1:] else ''}"
            for found in ([f"row {row}" for row in self.rows], self.parts)
            if found
        ]

    @property
    def amplification(self) -> float | None:
        """How many times what rounding changes in the better gauge it changes in the other; None if not measured."""
        if self.rounding is None or self.plain is None or not self.plain.rms:
            return None
        return self.rounding.rms / self.plain.rms

    @property
    def reason(self) -> str:
        """What differs, in words, where it isn't equal."""
        if self.unequal:
            return f"{self.unequal[0]!r}, which transformers doesn't read, differs"
        if self.misshapen:
            return self.misshapen
        if self.which_parts and (self.explained or self.only_opened):
            return "; ".join(self.which_parts)
        figures = [f"{self.subject} differ by {self.max_rel:.2g} relative (allowed {self.tolerance:.2g})"]
        if self.rms is not None and self.max_rel <= self.tolerance:
            figures.append(f"{self.rms:.2g} in the root mean square")
            figures += [] if self.kl is None else [f"{self.kl:.2g} nats as distributions"]
        if self.rounding is not None:
            figures.append(f"one rounding changes them by {self.rounding.max_rel:.2g} and {self.rounding.rms:.2g}")
            times = self.amplification or 0.0
            figures += [f"{times:.2g} times what it changes in the better gauge"] if times > AMPLIFICATION else []
        return ", ".join(figures)


def judged(
    how: str,
    found: Distances,
    explaining: Distances,
    measured: Sequence[Distances | None],
    floor: float,
    tolerance: float | None,
    **others: Any,
) -> Verification:
    """The verdict on models as they are, or opened where that is all that differs.

    Args:
        how: What was compared, in words.
        found: How far the two are from each other.
        explaining: What rounding explains of that.
        measured: `rounding` and `plain`, if they were measured.
        floor: What arithmetic alone leaves.
        tolerance: What counts as equal instead of both.
        others: Further fields.
    """
    within = [
        rounds.explains(apart, floor) if tolerance is None else apart.max_rel <= tolerance
        for rounds, apart in ((explaining.shown, found.shown), (explaining.opened, found.opened))
    ]
    which = "opened" if within == [True, False] else "shown"
    apart, rounds = getattr(found, which), getattr(explaining, which)
    rounding, plain = (None if each is None else getattr(each, which) for each in measured)
    return Verification(
        apart.max_abs,
        apart.max_rel,
        rounds.allowed(floor) if tolerance is None else tolerance,
        how,
        apart.rms,
        apart.kl,
        rounding,
        plain,
        tolerance is not None or all(within),
        only_opened=which == "opened",
        **others,
    )
