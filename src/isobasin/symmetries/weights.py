"""The weights of attention blocks in the one form that all the mathematics here uses, and what their axes are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

_QUERY = ("head", "query")
_UNIT = ("expert", "unit")
# What runs along the first axes of each weight, of attention and of feed-forward blocks: an axis of size one is shared.
AXES = {
    **dict.fromkeys(("query", "query_bias", "query_gain", "rotary_query", "output", "table", "sink"), _QUERY),
    **dict.fromkeys(("key", "key_bias", "key_gain", "value", "value_bias"), ("head",)),
    **dict.fromkeys(("up", "up_bias", "gate", "gate_bias", "down"), _UNIT),
}


@dataclass(frozen=True)
class Weights:
    """The weights of one block, or of a stack of equal blocks (leading dimensions `...`): its fields, or None."""

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> Self:
        """The weights of these fields."""
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by field name."""
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same weights with `function` applied to every tensor."""
        return replace(self, **{name: function(t) for name, t in self.tensors().items()})

    def __getitem__(self, index: int) -> Self:
        """One block of a stack."""
        return self.map(lambda t: t[index])


@dataclass(frozen=True)
class AttentionWeights(Weights):
    """Projections of one attention block, or of a stack of equal blocks (leading dimensions `...`).

    With g key/value heads, s query heads for each, model width d, query/key features n, value features m:

    Attributes:
        query: `(..., g, s, d, n)`.
        key: `(..., g, d, n)`.
        value: `(..., g, d, m)`.
        output: `(..., g, s, d, m)`; a head's output is `z O^T` for its values `z`.
        query_bias: `(..., g, s, n)` or None.
        key_bias: `(..., g, n)` or None.
        value_bias: `(..., g, m)` or None.
        output_bias: `(..., d)` or None.
        query_gain: Of normalised queries, `(..., g, s, n)`, or `(..., 1, 1, n)` where all heads share it; or None.
        key_gain: Likewise, `(..., g, n)` or `(..., 1, n)`.
        table: Relative position biases of every query head, `(..., g, s, entries)`, or None.
        sink: Score of no token for every query head, `(..., g, s)`, or None.

    In latent attention (`LatentGroup`) queries, keys and values have a latent's features for model width, if they read
    one, and its gains folded in. There are also:

    Attributes:
        rotary_query: All that rotates of queries, `(..., g, s, d, r)`.
        rotary_key: The one rotary key, `(..., d, r)`.
        rotary_key_bias: `(..., r)` or None.
        query_down: What the queries' latent is normalised from, `(..., d, q)`; None where they read the stream.
        query_down_bias: `(..., q)` or None.
        query_down_gain: `(..., q)`, or None likewise.
        key_value_down: Likewise of the latent of keys and values, `(..., d, c)`.
        key_value_down_bias: `(..., c)` or None.
        key_value_down_gain: `(..., c)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None
    output_bias: Tensor | None = None
    query_gain: Tensor | None = None
    key_gain: Tensor | None = None
    table: Tensor | None = None
    sink: Tensor | None = None
    rotary_query: Tensor | None = None
    rotary_key: Tensor | None = None
    rotary_key_bias: Tensor | None = None
    query_down: Tensor | None = None
    query_down_bias: Tensor | None = None
    query_down_gain: Tensor | None = None
    key_value_down: Tensor | None = None
    key_value_down_bias: Tensor | None = None
    key_value_down_gain: Tensor | None = None

    @property
    def width(self) -> int:
        """Width of the stream that the block reads and writes."""
        return self.output.shape[-2]


def stack(blocks: list[AttentionWeights]) -> AttentionWeights:
    """Stack equal blocks along a new leading dimension."""
    if len(blocks) == 1:
        return blocks[0].map(lambda t: t.unsqueeze(0))
    names = blocks[0].tensors().keys()
    return AttentionWeights(**{name: torch.stack([getattr(b, name) for b in blocks]) for name in names})
