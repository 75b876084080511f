"""Distances as a block's inputs see them: its readers weighted by the second moments of what they read.

With inputs x as rows and `Σ = E[[x, 1]^T [x, 1]]`, the mean squared error of a projection's outputs is

    E ||[x, 1] (A - B)||² = ||R (A - B)||_F²,    R^T R = Σ,    R = [[L^T, 0], [μ, 1]],    L L^T = Cov(x), μ = E[x],

so weighting turns weights W into `L^T W` and their bias b into `b + μ W`, its value at the mean input. A projection
without bias has no such row: it is weighted by a root of `E[x^T x]`. Whatever acts on features from the right, and
shifts of biases, act on weighted readers as on the others: every solver serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from isobasin.symmetries.feedforward import FeedForwardWeights
from isobasin.symmetries.weights import AttentionWeights

# Inputs that calibration data hardly vary in keep this share of the mean variance: nothing is invisible.
_FLOOR = 1e-3

AnyWeights = TypeVar("AnyWeights", AttentionWeights, FeedForwardWeights)
Moments = Mapping[str, Tensor]
"""Second moments Σ, `(..., d + 1, d + 1)` in float64, of what each reader reads, by its field's name."""


def weighted(weights: AnyWeights, moments: Moments) -> AnyWeights:
    """The weights with their readers as inputs of these moments see them.

    Args:
        weights: Of a block, or of a stack of blocks.
        moments: Of the inputs of `query`, `key` and `value`, or of `up` and `gate`; with the same leading dimensions.
    """
    parts = weights.tensors()
    units = isinstance(weights, FeedForwardWeights)
    found: dict[str, Tensor] = {}
    for name, moment in moments.items():
        if name not in parts:
            continue
        # A unit's row is a column of its projection.
        matrix, bias = parts[name].mT if units else parts[name], parts.get(f"{name}_bias")
        heads = (1,) * (matrix.ndim - moment.ndim)
        moment = moment.reshape(*moment.shape[:-2], *heads, *moment.shape[-2:])
        root = _root(moment, covariance=bias is not None) @ matrix
        found[name] = root.mT if units else root
        if bias is not None:
            found[f"{name}_bias"] = bias + (moment[..., -1:, :-1] @ matrix).squeeze(-2)
    return replace(weights, **found)


def _root(moment: Tensor, *, covariance: bool) -> Tensor:
    """`L^T` of `L L^T = E[x^T x]`, or of the covariance of x."""
    square, mean = moment[..., :-1, :-1], moment[..., -1, :-1]
    if covariance:
        square = square - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    floor = _FLOOR * square.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    # A reader whose input never changes is weighted by zero, but for rounding: that has no root.
    floor = floor.clamp(min=torch.finfo(torch.float64).tiny ** 0.5)
    return torch.linalg.cholesky(square + floor[..., None, None] * identity).mT


def folded(moment: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """The moments of x̂ where those of `x = x̂ g + n` are known; without n, of `x / g`.

    Args:
        moment: Σ, `(d + 1, d + 1)`.
        gain: g, `(d)`; coordinates of gain zero count as constant.
        bias: n, `(d)`, or None.
    """
    inverse = torch.where(gain == 0, 0, 1 / torch.where(gain == 0, 1, gain))
    change = torch.diag(torch.cat([inverse, inverse.new_ones(1)]))
    if bias is not None:
        change[-1, :-1] = -bias * inverse
    return change.mT @ moment @ change
