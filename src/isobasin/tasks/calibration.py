"""The softmax temperature that minimises a mean cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

LOWEST, HIGHEST = 1e-2, 1e2
"""Bounds of the inverse temperature: a model that is never wrong would have none."""

# Values in a piece of logits: small enough for a processor's cache.
_PIECE = 2**14
# Of log β: the error of the least value, its square times half a curvature, is far smaller.
_TOLERANCE = 1e-5

Mean = tuple[float, float]
"""A mean cross-entropy and its derivative in β."""


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

    def sums(self, beta: float) -> tuple[float, float]:
        """`logsumexp(β z) - β z_y` and its derivative in β, summed over the predictions in float64."""
        total = torch.zeros(2, dtype=torch.float64, device=self.logits.device)
        rows = max(1, _PIECE // self.logits.shape[-1])
        for z, right in zip(self.logits.split(rows), self.right.split(rows), strict=True):
            weights = torch.mul(z, beta).exp_()
            normaliser = weights.sum(-1).double()
            mean = torch.linalg.vecdot(weights, z).double() / normaliser
            total += torch.stack([(normaliser.log() - beta * right).sum(), (mean - right).sum()])
        value, slope = total.tolist()
        return value, slope


def solve(mean: Callable[[float], Mean]) -> tuple[float, float]:
    """Where a convex function of β is least, and its value there: the root of its slope, by Brent's method in log β.

    Args:
        mean: The function with its derivative.

    Returns:
        β between `LOWEST` and `HIGHEST`, and the least value; not a number where the function isn't one.
    """
    at = cache(lambda log_beta: mean(math.exp(log_beta)))
    low, high = math.log(LOWEST), math.log(HIGHEST)
    if not (math.isfinite(at(low)[1]) and math.isfinite(at(high)[1])):
        return math.nan, math.nan
    if at(low)[1] >= 0:
        return LOWEST, at(low)[0]
    if at(high)[1] <= 0:
        return HIGHEST, at(high)[0]
    found: Any = brentq(lambda log_beta: at(log_beta)[1], low, high, xtol=_TOLERANCE)
    return math.exp(found), at(found)[0]
