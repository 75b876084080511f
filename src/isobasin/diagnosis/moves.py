"""Whether what is left between two blocks is a move of their symmetry group, which is no defect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.choices import Method
from isobasin.diagnosis.rounding import relative
from isobasin.errors import TensorError
from isobasin.matching.attention import match
from isobasin.matching.circuits import FLOORS, bias_error, bias_tolerance, circuit_error, tolerance
from isobasin.matching.feedforward import match_feedforward

# A move that leaves more than this of the distance is none: the blocks were as near before.
_FALL = 0.5
_MOST = 1e12


@dataclass(frozen=True)
class Gap:
    """What the best move of a block leaves between two.

    Attributes:
        errors: Relative differences: of circuits and biases of attention, of the weights of feed-forward blocks.
        allowed: Those that rounding explains, likewise.
        fall: The share of the weights' distance that is left.
    """

    errors: dict[str, float]
    allowed: dict[str, float]
    fall: float

    @property
    def closed(self) -> bool:
        """Whether a move explains the difference."""
        return self.fall <= _FALL and all(ratio <= 1 for ratio in self.ratios().values())

    def ratios(self) -> dict[str, float]:
        """Every error over what is allowed."""
        return {name: min(error / self.allowed[name], _MOST) for name, error in self.errors.items()}


def gap(
    block: AttentionBlock | FeedForward,
    x: Mapping[str, Tensor],
    y: Mapping[str, Tensor],
    kind: torch.dtype,
    method: Method = Method.gauss_newton,
) -> Gap:
    """What the best move leaves of the difference of two blocks whose values a type holds.

    Circuits see no continuous map, so that a quick method finds nearly the same.
    """
    if not isinstance(block, AttentionBlock):
        return _units(block, x, y, max(FLOORS.get(kind, 0.0), torch.finfo(kind).eps))
    try:
        ours, theirs = block.read(x), block.read(y)
    except TensorError:  # a gain of a latent is 0: no move is known
        return Gap({"gains": math.inf}, {"gains": 1.0}, 1.0)
    moved = match(block.group, ours, theirs, method=method).moved
    stored = (ours, kind, ours), (theirs, kind, theirs)
    allowed = tolerance(block.group, *stored)
    errors = {
        "circuits": float(circuit_error(block.group, ours, moved)),
        "biases": float(bias_error(block.group, ours, moved, bias_tolerance(block.group, *stored))),
    }
    fall = _fall(ours.tensors(), theirs.tensors(), moved.tensors())
    return Gap(errors, {"circuits": allowed, "biases": 10 * allowed}, fall)


def _units(block: FeedForward, x: Mapping[str, Tensor], y: Mapping[str, Tensor], allowed: float) -> Gap:
    """`gap` of two feed-forward blocks."""
    ours, theirs = block.read(x), block.read(y)
    moved = match_feedforward(block.group, ours, theirs).moved.tensors()
    pairs = {role: (part, theirs.tensors()[role]) for role, part in ours.tensors().items()}
    errors = {role: relative(part, moved[role]) for role, (part, _) in pairs.items()}
    grown = {role: relative(part, part + other) for role, (part, other) in pairs.items() if role in block.group.shifted}
    within = {role: allowed * max(1.0, grown.get(role, 1.0)) for role in errors}
    return Gap(errors, within, _fall(ours.tensors(), theirs.tensors(), moved))


def _fall(x: Mapping[str, Tensor], y: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> float:
    """The share of a distance that a move leaves."""
    before, after = (_distance(x, other) for other in (y, moved))
    return after / before if before else 0.0


def _distance(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((part - y[role]).square().sum()) for role, part in x.items()))
