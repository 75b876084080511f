"""Permutations of heads, of units and of experts, batched.

A permutation is an index tensor `p` of shape `(..., k)`; it acts as `new[j] = old[p[j]]`. So acting with
`p` and then with `q` is acting with `p[q]`, and the inverse is `argsort(p)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isobasin.symmetries.factor import Factor, Parts
from isobasin.symmetries.weights import AXES

Axes = Mapping[str, tuple[str, ...]]


def take(x: Tensor, permutation: Tensor) -> Tensor:
    """`new[..., j, ...] = x[..., p[..., j], ...]` on the axis that is the permutation's last.

    Args:
        x: `(*batch, k, ...)`.
        permutation: `(*batch, k)`, int64.

    Returns:
        A new tensor of x's shape; x itself where nothing is permuted. Whole slices are copied: there is no index per
        element.
    """
    heads = permutation.shape[-1]
    if not heads:
        return x
    flat = x.flatten(0, permutation.ndim - 1)
    offsets = torch.arange(0, len(flat), heads, device=permutation.device).unsqueeze(-1)
    index = (permutation.reshape(-1, heads) + offsets).flatten()
    return flat.index_select(0, index.to(x.device)).reshape(x.shape)


def sample(batch: tuple[int, ...], heads: int, generator: torch.Generator) -> Tensor:
    """Uniformly random permutations, `(*batch, heads)`."""
    return torch.rand(*batch, heads, generator=generator, dtype=torch.float64).argsort(-1)


def identity(batch: tuple[int, ...], heads: int, device: torch.device | str = "cpu") -> Tensor:
    """The identity, `(*batch, heads)`."""
    return torch.arange(heads, device=device).expand(*batch, heads).clone()


def is_permutation(p: Tensor) -> bool:
    """Whether every row holds each of `0 .. k-1` once."""
    return torch.equal(p.sort(-1).values, identity(tuple(p.shape[:-1]), p.shape[-1], p.device))


def nested(outer: Tensor, inner: Tensor) -> Tensor:
    """The permutation that permutes groups, `(..., g)`, and what is inside each, `(..., g, s)`; `(..., g * s)`."""
    return (outer.unsqueeze(-1) * inner.shape[-1] + inner).flatten(-2)


@dataclass(frozen=True)
class Heads(Factor):
    """Permutations of key/value heads, and of the query heads of each: S_s wreath S_g.

    Attributes:
        kv_heads: Number of key/value heads, g.
        queries_per_kv: Query heads of each, s.
        free: Whether they may be permuted at all.
    """

    kv_heads: int
    queries_per_kv: int
    free: bool = True

    @property
    def axes(self) -> Axes:
        """Which key/value head each new one was, `(..., g)`, and which of its query heads each was, `(..., g, s)`."""
        return {"outer": (), "inner": ()}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """All in order."""
        inner = identity((*batch, self.kv_heads), self.queries_per_kv, device)
        return {"outer": identity(batch, self.kv_heads, device), "inner": inner}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Uniformly random; the identity where none is free."""
        outer = sample(batch, self.kv_heads, generator)
        inner = sample((*batch, self.kv_heads), self.queries_per_kv, generator)
        return {"outer": outer, "inner": inner} if self.free else self.identity(batch)

    def compose(self, second: Parts, first: Parts) -> Parts:
        """Query heads go with their key/value heads."""
        inner = take(take(first["inner"], second["outer"]), second["inner"])
        return {"outer": take(first["outer"], second["outer"]), "inner": inner}

    def inverse(self, element: Parts) -> Parts:
        """The way back."""
        outer = element["outer"].argsort(-1)
        return {"outer": outer, "inner": take(element["inner"], outer).argsort(-1)}

    def contains(self, element: Parts) -> bool:
        """Whether both are permutations, and the identity where none is free."""
        outer, inner = element["outer"], element["inner"]
        fixed = self.identity(tuple(outer.shape[:-1]), outer.device)
        in_order = torch.equal(outer, fixed["outer"]) and torch.equal(inner, fixed["inner"])
        return is_permutation(outer) and is_permutation(inner) and (self.free or in_order)

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Whole heads moved, nothing else."""
        return self.reordered(element, weights, AXES)

    def reordered(self, element: Parts, parts: Parts, axes: Axes) -> Parts:
        """What belongs to heads, in their new order."""
        outer, inner = element["outer"], element["inner"]
        lead, heads = outer.ndim - 1, nested(outer, inner)

        def moved(name: str, x: Tensor) -> Tensor:
            along = axes.get(name, ())
            if along[:2] == ("head", "query") and x.shape[lead : lead + 2] == inner.shape[-2:]:
                return take(x.flatten(lead, lead + 1), heads).reshape(x.shape)
            return take(x, outer) if along == ("head",) and x.shape[lead] == outer.shape[-1] else x

        return {name: moved(name, x) for name, x in parts.items()}

    def __str__(self) -> str:
        return f"S_{self.kv_heads}" if self.queries_per_kv == 1 else f"S_{self.queries_per_kv} wr S_{self.kv_heads}"


@dataclass(frozen=True)
class Order(Factor):
    """Permutations that are one part, of this name: which unit, or expert, each new one was."""

    part: ClassVar[str]

    def compose(self, second: Parts, first: Parts) -> Parts:
        """`p[q]`."""
        return {self.part: take(first[self.part], second[self.part])}

    def inverse(self, element: Parts) -> Parts:
        """The way back."""
        return {self.part: element[self.part].argsort(-1)}

    def contains(self, element: Parts) -> bool:
        """Whether each is a permutation."""
        return is_permutation(element[self.part])


@dataclass(frozen=True)
class Units(Order):
    """All permutations of hidden units, S_f; of experts, of each of them.

    Attributes:
        units: f.
        experts: The axis of experts, if there are any.
    """

    units: int
    experts: tuple[int, ...] = ()

    part = "permutation"

    @property
    def axes(self) -> Axes:
        """`(..., f)`; of e experts `(..., e, f)`."""
        return {self.part: ("expert",) if self.experts else ()}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """All in order."""
        return {self.part: identity((*batch, *self.experts), self.units, device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Uniformly random."""
        return {self.part: sample((*batch, *self.experts), self.units, generator)}

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Whole units moved, nothing else."""
        return self.reordered(element, weights, AXES)

    def reordered(self, element: Parts, parts: Parts, axes: Axes) -> Parts:
        """What belongs to units, in their new order."""
        order = element[self.part]
        return {name: take(x, order) if "unit" in axes.get(name, ()) else x for name, x in parts.items()}

    def __str__(self) -> str:
        return f"S_{self.units}"


@dataclass(frozen=True)
class Experts(Order):
    """Permutations of experts that keep together those of a group: S_(e/k) wreath S_k.

    Attributes:
        experts: e; 0 for a block that is no choice of experts.
        groups: k.
    """

    experts: int
    groups: int = 1

    part = "experts"

    @property
    def axes(self) -> Axes:
        """`(..., e)`."""
        return {self.part: ()}

    def identity(self, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Parts:
        """All in order."""
        return {self.part: identity(batch, self.experts, device)}

    def sample(
        self, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0, shift: float = 1.0
    ) -> Parts:
        """Uniformly random."""
        count, size = self.groups, self.experts // self.groups
        outer = sample(batch, count, generator) if self.experts else identity(batch, count)
        return {self.part: nested(outer, sample((*batch, count), size, generator))}

    def contains(self, element: Parts) -> bool:
        """Whether each is a permutation, and where neighbours of a group come from is one group."""
        size = self.experts // self.groups
        origins = element[self.part].unflatten(-1, (self.groups, size)) // max(size, 1)
        return bool((origins == origins[..., :1]).all()) and super().contains(element)

    def act(self, element: Parts, weights: Parts) -> Parts:
        """Whole experts moved, with their rows of the router."""
        return {name: take(x, element[self.part]) for name, x in weights.items()}

    def reordered(self, element: Parts, parts: Parts, axes: Axes) -> Parts:
        """What belongs to experts, in their new order."""
        own = {name: x for name, x in parts.items() if axes.get(name, ())[:1] == ("expert",)}
        return {**parts, **self.act(element, own)}

    def __str__(self) -> str:
        size = self.experts // self.groups
        return f"S_{self.experts}" if self.groups == 1 else f"(S_{size} wr S_{self.groups})"
