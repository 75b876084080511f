"""What LayerNorm doesn't see of a head's queries, and of its keys: a free multiple of the vector of ones for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.loose import Loose

# What reads the input of a block, with its bias.
READERS = ("query", "key", "query_bias", "key_bias")


@dataclass(frozen=True)
class Means(Factor):
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
    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """The multiples themselves."""
        shape = self.kv_heads, self.queries_per_kv, self.inputs
        return {"query_means": shape, "key_means": shape[::2]}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """Nothing added."""
        shapes = self.coordinates.items()
        return {name: torch.zeros(*batch, *shape, dtype=torch.float64, device=device) for name, shape in shapes}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Normal."""
        shapes = self.coordinates.items()
        return {n: shift * torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for n, s in shapes}

    def compose(self, second: Parts, first: Parts) -> Parts:
        """The sum."""
        return {name: first[name] + second[name] for name in self.axes}

    def inverse(self, element: Parts) -> Parts:
        """The negative."""
        return {name: -element[name] for name in self.axes}

    def contains(self, element: Parts) -> bool:
        """Any."""
        return True

    def chart(self, coordinates: Parts) -> Parts:
        """The multiples themselves."""
        return {name: coordinates[name] for name in self.axes if name in coordinates}

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
        found = {
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
        return found

    def read(self, weights: Parts) -> Parts:
        """The weights without means, so that no distance, cost or comparison depends on them."""
        return {name: x - x.mean(-1, keepdim=True) if name in READERS else x for name, x in weights.items()}

    def __str__(self) -> str:
        return f"R^{(self.queries_per_kv + 1) * self.inputs} (means)"
