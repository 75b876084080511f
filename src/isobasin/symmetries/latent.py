"""What the heads of latent attention share: how it moves, and how gains are folded.

In folded weights (`AttentionWeights`) an element `(P, c, u)` acts on a latent, its readers and the rotary features as

    D <- D P,     W <- P^T W,     a <- a ∘ c,     r <- r u,     t <- t / conj(u)

with biases of D and t as one more row. These commute with all that moves heads, and among themselves but for the maps
P of one latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.symmetries import bilinear
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.groups import LatentGroup
from isobasin.symmetries.weights import AttentionWeights

# What reads each latent.
READERS = {"query": ("query", "rotary_query"), "key_value": ("key", "value")}


@dataclass(frozen=True)
class LatentElement:
    """An element of `LatentGroup`, or a batch of them; of a latent that isn't there all is empty.

    Attributes:
        rotary: u, `(..., p)` complex128.
        query: P of the queries' latent, `(..., q, q)`.
        query_trades: c of its gains, `(..., q)`.
        key_value: P of the other latent.
        key_value_trades: c of its gains.
    """

    rotary: Tensor
    query: Tensor
    query_trades: Tensor
    key_value: Tensor
    key_value_trades: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name; `LatentElement(**parts)` is the inverse."""
        return dict(vars(self))

    @property
    def planes(self) -> BilinearElement:
        """As an element of the rotary pair."""
        return BilinearElement(self.rotary.real.new_empty(*self.rotary.shape[:-1], 0, 0), self.rotary)


def identity(group: LatentGroup, batch: tuple[int, ...] = (), device: torch.device | str = "cpu") -> LatentElement:
    """The identity element."""
    return _element(
        bilinear.identity(group.rotary, batch, device).planes,
        group,
        lambda n: torch.eye(n, dtype=torch.float64, device=device).expand(*batch, n, n).clone(),
        lambda n: torch.ones(*batch, n, dtype=torch.float64, device=device),
    )


def sample(
    group: LatentGroup, generator: torch.Generator, batch: tuple[int, ...] = (), condition: float = 10.0
) -> LatentElement:
    """Random elements; trades have either sign and sizes up to `condition`, evenly in the logarithm."""

    def rotation(n: int) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(*batch, n, n, generator=generator, dtype=torch.float64))
        return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)

    def trades(n: int) -> Tensor:
        uniform = torch.rand(2, *batch, n, generator=generator, dtype=torch.float64)
        return ((uniform[0] - 0.5) * math.log(condition)).exp() * torch.where(uniform[1] < 0.5, -1.0, 1.0)

    return _element(bilinear.sample(group.rotary, batch, generator, condition).planes, group, rotation, trades)


def _element(
    rotary: Tensor, group: LatentGroup, maps: Callable[[int], Tensor], trades: Callable[[int], Tensor]
) -> LatentElement:
    query, key_value = group.query, group.key_value
    return LatentElement(rotary, maps(query), trades(query), maps(key_value), trades(key_value))


def rotated(coordinates: Tensor) -> Tensor:
    """The map `exp(S - S^T)` of the coordinates below the diagonal of S, `(n (n - 1) / 2)` to `(n, n)`."""
    n = round((1 + math.sqrt(1 + 8 * len(coordinates))) / 2)
    rows, columns = torch.tril_indices(n, n, -1, device=coordinates.device)
    lower = coordinates.new_zeros(n, n).index_put((rows, columns), coordinates)
    return torch.matrix_exp(lower - lower.mT)


def compose(second: LatentElement, first: LatentElement) -> LatentElement:
    """The element that acts as `first` and then `second`."""
    return LatentElement(
        second.rotary * first.rotary,
        first.query @ second.query,
        first.query_trades * second.query_trades,
        first.key_value @ second.key_value,
        first.key_value_trades * second.key_value_trades,
    )


def inverse(element: LatentElement) -> LatentElement:
    """The inverse element."""
    maps = (element.query.mT.contiguous(), element.key_value.mT.contiguous())
    return LatentElement(1 / element.rotary, maps[0], 1 / element.query_trades, maps[1], 1 / element.key_value_trades)


def contains(element: LatentElement, tolerance: float = 1e-9) -> bool:
    """Whether the maps are orthogonal up to rounding, and no trade is 0."""
    maps, trades = (element.query, element.key_value), (element.query_trades, element.key_value_trades)
    eyes = (torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) for x in maps)
    orthogonal = all(torch.allclose(x.mT @ x, eye, rtol=0, atol=tolerance) for x, eye in zip(maps, eyes, strict=True))
    return orthogonal and all(bool((x != 0).all()) for x in (*trades, element.rotary))


def act(group: LatentGroup, element: LatentElement, weights: AttentionWeights) -> AttentionWeights:
    """The moved weights; the block's function is the same."""
    parts, moved = weights.tensors(), dict[str, Tensor]()
    for name in group.widths:
        matrix, down = getattr(element, name), f"{name}_down"
        moved[down] = parts[down] @ matrix
        moved[f"{down}_gain"] = parts[f"{down}_gain"] * getattr(element, f"{name}_trades")
        if f"{down}_bias" in parts:
            moved[f"{down}_bias"] = (parts[f"{down}_bias"].unsqueeze(-2) @ matrix).squeeze(-2)
        for reader in READERS[name]:
            moved[reader] = _by_heads(matrix.mT, parts[reader]) @ parts[reader]
    queries, planes = moved.get("rotary_query", parts["rotary_query"]), element.planes
    moved["rotary_query"] = bilinear.act_left(group.rotary, planes, queries.flatten(-4, -2)).reshape(queries.shape)
    moved["rotary_key"] = bilinear.act_right(group.rotary, planes, parts["rotary_key"])
    if weights.rotary_key_bias is not None:
        bias = bilinear.act_right(group.rotary, planes, weights.rotary_key_bias.unsqueeze(-2))
        moved["rotary_key_bias"] = bias.squeeze(-2)
    return replace(weights, **moved)


def _by_heads(x: Tensor, like: Tensor) -> Tensor:
    """A matrix that all heads share, with an axis of one for each of theirs."""
    return x.reshape(*x.shape[:-2], *(1,) * (like.ndim - x.ndim), *x.shape[-2:])


def folded(group: LatentGroup, weights: AttentionWeights) -> AttentionWeights:
    """Weights as they are stored, with the gains of the latents multiplied into what reads them."""
    return _scaled(group, weights, lambda x, gain: x * gain)


def unfolded(group: LatentGroup, weights: AttentionWeights) -> AttentionWeights:
    """The inverse of `folded`."""
    return _scaled(group, weights, lambda x, gain: x / gain)


def _scaled(
    group: LatentGroup, weights: AttentionWeights, scale: Callable[[Tensor, Tensor], Tensor]
) -> AttentionWeights:
    parts = weights.tensors()
    return replace(
        weights,
        **{
            reader: scale(parts[reader], _by_heads(parts[f"{name}_down_gain"].unsqueeze(-1), parts[reader]))
            for name in group.widths
            for reader in READERS[name]
        },
    )
