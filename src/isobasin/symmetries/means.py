"""What LayerNorm doesn't see of a head's queries, and of its keys: a free multiple of the vector of ones for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isobasin.symmetries.factor import Parts
from isobasin.symmetries.loose import Loose
from isobasin.symmetries.shift import Added

# What reads the input of a block, with its bias.
READERS = ("query", "key", "query_bias", "key_bias")


@dataclass(frozen=True)
class Means(Added):
    """Multiples of the vector of ones, which LayerNorm of a head's features doesn't see, one for each of their inputs.

    Attributes:
        kv_heads: Number of key/value heads.
        queries_per_kv: Query heads of each.
        inputs: The numbers that a head's queries, and its keys, read, their bias among them.
    """

    kv_heads: int
    queries_per_kv: int
    inputs: int

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """What is added to queries and to keys."""
        return {"query_means": ("head", "query"), "key_means": ("head",)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One for each number that is read."""
        shape = self.kv_heads, self.queries_per_kv, self.inputs
        return {"query_means": shape, "key_means": shape[::2]}

    def act(self, element: Parts, weights: Parts) -> Parts:
        """The same number added to all features of a row."""
        moved = dict(weights)
        for role in ("query", "key"):
            mean, width = element[f"{role}_means"], weights[role].shape[-2]
            moved[role] = weights[role] + mean[..., :width, None]
            if f"{role}_bias" in weights:
                moved[f"{role}_bias"] = weights[f"{role}_bias"] + mean[..., width:]
        return moved

    def canonical(self, weights: Parts, loose: Loose) -> Parts:
        """What leaves no means."""
        return {
            f"{role}_means": torch.cat(
                [
                    -weights[name].mean(-1, keepdim=name.endswith("_bias"))
                    for name in (role, f"{role}_bias")
                    if name in weights
                ],
                -1,
            )
            for role in ("query", "key")
        }

    def read(self, weights: Parts) -> Parts:
        """The weights without means, so that no distance, cost or comparison depends on them."""
        return {name: x - x.mean(-1, keepdim=True) if name in READERS else x for name, x in weights.items()}

    def __str__(self) -> str:
        return f"R^{(self.queries_per_kv + 1) * self.inputs} (means)"
