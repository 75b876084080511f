"""Which activations let a unit's scale pass through; only here, for all families.

Names are those of transformers, and one of ours for what it has no name for. What isn't listed leaves nothing but the
order of units free, which always is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isobasin.errors import ArchitectureError
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale

# φ(s z) = s^n φ(z) for s > 0, by n.
_DEGREE = {"relu": 1, "leaky_relu": 1, "relu2": 2}
# φ(-z) = -φ(z)
_ODD = ("tanh",)
_CLAMPED = "clamped_swiglu"


def feedforward_group(units: int, activation: str, *, gated: bool) -> FeedForwardGroup:
    """The group of a feed-forward block.

    Args:
        units: Hidden units.
        activation: Its name in transformers.
        gated: Whether the activation multiplies a second branch, which any number but 0 may then scale.
    """
    degree = _DEGREE.get(activation, 1)
    read = Scale.positive if activation in _DEGREE else Scale.sign if activation in _ODD else Scale.none
    if gated:
        return FeedForwardGroup(units, Scale.none if _is_clamped(activation) else Scale.signed, read, degree)
    return FeedForwardGroup(units, read, None, degree)


def clamped_swiglu(alpha: float, limit: float) -> str:
    """The name of `φ(z) = σ(α z) min(z, l)` times `1 + clamp(up, -l, l)`, which lets no scale of either branch pass."""
    return f"{_CLAMPED}:{alpha}:{limit}"


def _is_clamped(activation: str) -> bool:
    return activation.partition(":")[0] == _CLAMPED


def activation_functions(activation: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """φ, and what is done to the branch that it multiplies, if anything.

    Raises:
        ArchitectureError: transformers knows no activation of that name.
    """
    from transformers.activations import ACT2FN

    if _is_clamped(activation):
        alpha, limit = map(float, activation.split(":")[1:])
        return (
            lambda z: z.clamp(max=limit) * torch.sigmoid(alpha * z.clamp(max=limit)),
            lambda up: 1 + up.clamp(-limit, limit),
        )
    if activation not in ACT2FN:
        raise ArchitectureError(f"activation {activation!r} is unknown to transformers; name one that it has")
    return ACT2FN[activation], None
