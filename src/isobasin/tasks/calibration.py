"""The softmax temperature that minimises a mean cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST = 1e-2, 1e2
"""Bounds of the inverse temperature: a model that is never wrong would have none."""

# Values in a piece of logits: small enough for a processor's cache.
_PIECE = 2**14
_STEPS = 60
# What a Newton step may still gain when it is the last: the error of the quadratic is then far smaller.
_GAIN = 1e-7

Derivatives = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Some predictions, kept for their temperature.

    Attributes:
        logits: `(n, classes)`, relative to the largest of each row, so that nothing overflows.
        right: `(n,)`, those of the labels.
        loss: Sum of their cross-entropies.
    """

    logits: Tensor
    right: Tensor
    loss: float

    @staticmethod
    def of(logits: Tensor, labels: Tensor, loss: float) -> Predictions:
        """From the logits `(n, classes)` of predictions and their labels `(n,)`; `logits` are overwritten."""
        centred = logits.sub_(logits.amax(-1, keepdim=True)).clamp_(min=-1e30)
        return Predictions(centred, centred.gather(-1, labels.unsqueeze(-1)).squeeze(-1).double(), loss)

    def sums(self, beta: float, every: int = 1) -> tuple[float, ...]:
        """`logsumexp(β z) - β z_y` and its first two derivatives in β, summed over every n-th prediction in float64."""
        total = torch.zeros(3, dtype=torch.float64, device=self.logits.device)
        rows = max(1, _PIECE // self.logits.shape[-1])
        for z, right in zip(self.logits[::every].split(rows), self.right[::every].split(rows), strict=True):
            weights = torch.mul(z, beta).exp_()
            normaliser = weights.sum(-1).double()
            mean = torch.linalg.vecdot(weights, z).double() / normaliser
            square = torch.linalg.vecdot(weights.mul_(z), z).double() / normaliser
            parts = normaliser.log() - beta * right, mean - right, square - mean**2
            total += torch.stack([part.sum() for part in parts])
        return tuple(total.tolist())


def solve(mean: Callable[[float], Derivatives], start: float = 1.0) -> tuple[float, float]:
    """Where a convex function of β is least, and its value, by Newton steps kept inside a shrinking bracket.

    Args:
        mean: The function with its first two derivatives.
        start: Where to begin.

    Returns:
        β between `LOWEST` and `HIGHEST`, and the least value to about 1e-7 (1e-9 unless it is reached very slowly,
        as by a model that is never wrong); not a number where the function isn't one.
    """
    low, high, beta = LOWEST, HIGHEST, min(max(start, LOWEST), HIGHEST)
    value = math.nan
    for _ in range(_STEPS):
        value, slope, curvature = mean(beta)
        if not math.isfinite(slope):
            return math.nan, math.nan
        low, high = (low, beta) if slope > 0 else (beta, high)
        newton = beta - slope / curvature if curvature > 0 else -math.copysign(math.inf, slope)
        if slope == 0 or low == high:
            break
        if slope**2 <= 2 * _GAIN * curvature:
            return min(max(newton, low), high), value - slope**2 / curvature / 2
        # A quadratic is not trusted far away, nor where it leads back to where the function is known already.
        following = min(max(newton, beta / 4, low), beta * 4, high)
        known = {low, high} - {LOWEST, HIGHEST}
        beta = math.sqrt(low * high) if following in known else following
    return beta, value
