"""What the demo measures: loss barriers of pairs of models, and a scrambled model brought back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobasin.checkpoints import temporary_folder
from isobasin.choices import Method
from isobasin.demo import place
from isobasin.demo.digits import Images, evaluate
from isobasin.lines.path import LinearPath, LossCurve, barrier
from isobasin.loading import load
from isobasin.verbs.align import align
from isobasin.verbs.apply import apply
from isobasin.verbs.scramble import random_alignment

NAIVE, HEADS, ALIGNED = "naive", "heads only", "aligned"


@dataclass(frozen=True)
class Pair:
    """Two models, and three lines from the first to the second.

    Attributes:
        first: Number of the model at t = 0.
        second: Number of the model at t = 1, of which every line ends in another gauge.
        t: Points of the lines.
        curves: By `NAIVE` (the second model as it is), `HEADS` (its heads permuted), `ALIGNED`.
        distance: Of the attention weights, before and after aligning.
    """

    first: int
    second: int
    t: tuple[float, ...]
    curves: dict[str, LossCurve]
    distance: dict[str, float]

    def percent(self, way: str) -> float | None:
        """A barrier in per cent of the naive one, if there is a naive one."""
        naive = self.curves[NAIVE].height
        return 100 * self.curves[way].height / naive if naive > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        curves = {
            way: {
                "barrier": curve.height,
                "worst_t": curve.worst_t,
                "percent_of_naive": self.percent(way),
                "losses": list(curve.losses),
            }
            for way, curve in self.curves.items()
        }
        return {"models": [self.first, self.second], "t": list(self.t), "distance": self.distance, "curves": curves}


def measure_pair(
    folder: Path, first: int, second: int, test: Images, t: tuple[float, ...], advance: Callable[[], None]
) -> Pair:
    """Align two of the demo's models and measure the barriers; `advance` is called after every point."""
    a, b = (folder / place.model_name(number) for number in (first, second))
    aligned = folder / place.aligned_name(first, second)
    alignment = align(a, b, aligned)
    with temporary_folder() as scratch:
        permuted = Path(scratch) / "heads"
        align(a, b, permuted, method=Method.heads)
        ends = {NAIVE: _state(b), HEADS: _state(permuted), ALIGNED: _state(aligned)}
    start, module = _state(a), load(a, torch.float32)

    def loss(point: Any) -> float:
        advance()
        return evaluate(point, test)[0]

    curves = {way: barrier(LinearPath(start, end, module), loss, t) for way, end in ends.items()}
    return Pair(first, second, t, curves, alignment.distance())


def _state(folder: Path) -> dict[str, Tensor]:
    return load(folder, torch.float32).state_dict()


@dataclass(frozen=True)
class Undone:
    """A model scrambled and brought back.

    Attributes:
        condition: Condition number of every map of the random group element.
        function_difference: Largest relative difference of the scrambled model's outputs from the model's.
        distance_before: Frobenius distance of the attention weights, scrambled to original.
        distance_after: The same after `align`.
        heads: How many attention heads the model has.
        heads_restored: How many of them are in their own place again.
    """

    condition: float
    function_difference: float
    distance_before: float
    distance_after: float
    heads: int
    heads_restored: int


def scramble_and_undo(folder: Path, seed: int, condition: float) -> Undone:
    """Scramble the first model, and align it to what it was.

    Both results are stored in float64, so that what is measured is the method and not the rounding of a file.
    """
    model, scrambled = folder / place.model_name(1), folder / place.SCRAMBLED
    planted = random_alignment(model, seed=seed, condition=condition)
    verified = apply(planted, model, scrambled, dtype=torch.float64).verified
    assert verified is not None
    found = align(model, scrambled, folder / place.RESTORED)
    heads = restored = 0
    for there, back in zip(planted.layers, found.layers, strict=True):
        home = there.element.head_permutation()[back.element.head_permutation()]
        heads += len(home)
        restored += int((home == torch.arange(len(home))).sum())
    distance = found.distance()
    return Undone(condition, verified.max_rel, distance["before"], distance["after"], heads, restored)
