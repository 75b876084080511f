"""Permutations of heads, batched.

A permutation is an index tensor `p` of shape `(..., k)`; it acts as `new[j] = old[p[j]]`. So acting with
`p` and then with `q` is acting with `p[q]`, and the inverse is `argsort(p)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take(x: Tensor, permutation: Tensor) -> Tensor:
    """`new[..., j, ...] = x[..., p[..., j], ...]` on the axis that is the permutation's last.

    Args:
        x: `(*batch, k, ...)`.
        permutation: `(*batch, k)`, int64.

    Returns:
        A new tensor of x's shape. Whole slices are copied: there is no index per element.
    """
    heads = permutation.shape[-1]
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
