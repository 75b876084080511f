"""Which activations let a unit's scale pass through; only here, for all families.

Names are those of transformers. What isn't listed leaves nothing but the order of units free, which always is.
"""

from __future__ import annotations

from isobasin.symmetries.feedforward import FeedForwardGroup, Scale

# φ(s z) = s^n φ(z) for s > 0, by n.
_DEGREE = {"relu": 1, "leaky_relu": 1, "relu2": 2}
# φ(-z) = -φ(z)
_ODD = ("tanh",)


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
        return FeedForwardGroup(units, Scale.signed, read, degree)
    return FeedForwardGroup(units, read, None, degree)
