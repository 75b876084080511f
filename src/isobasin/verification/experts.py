"""Experts one by one, where 16 bits are stored: there rounding everywhere may hide an edit of one of them.

Opened, every expert takes part in what every token gets. What one adds to some tokens is known but for a turn of the
residual stream, which leaves inner products as they are: those of what it adds to one token and to another. Experts of
two models are paired by these, and judged by what rounding changes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isobasin.verification.distance import FACTOR

# Tokens of which inner products are kept.
_TOKENS = 32


def products(added: Tensor) -> Tensor:
    """Inner products of what an expert adds to some tokens, `(tokens, tokens)`, given `(all tokens, width)`."""
    some = added[:_TOKENS].double()
    return (some @ some.T).float().cpu()


def changes(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    """How far every expert's products are from others, relative, of blocks of experts `(experts, tokens, tokens)`.

    What is added to a token counts by its own size in the first, or a usual token's where that is larger: now and then
    one token gets a thousand times as much as others, and what rounding happens to change of it alone says nothing.
    """
    found: list[Tensor] = []
    for ours, theirs in zip(x, y, strict=True):
        sizes = ours.diagonal(dim1=-2, dim2=-1).double().clamp(min=0).sqrt()
        sizes = sizes.clamp(min=sizes.median(-1, keepdim=True).values)
        units = sizes.unsqueeze(-1) * sizes.unsqueeze(-2)
        gaps, whole = (torch.linalg.vector_norm(each / units, dim=(-2, -1)) for each in (ours - theirs, ours))
        found.append((gaps / whole).nan_to_num(0.0, torch.inf))  # 0 / 0: none is none of any size
    return found


def unlike_experts(
    x: Sequence[Tensor], y: Sequence[Tensor], rounded: Sequence[Sequence[Tensor]]
) -> tuple[int, list[int]] | None:
    """The first block in which experts are others, and which of the second model's; later ones read what it left.

    Args:
        x: One model's products, of every block `(experts, tokens, tokens)`.
        y: The other's.
        rounded: What rounding changes of either, as `changes` has it.
    """
    from scipy.optimize import linear_sum_assignment

    for block, (ours, theirs, *each) in enumerate(zip(x, y, *rounded, strict=False)):
        if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
            return None
        costs = torch.cdist(ours.flatten(1).double(), theirs.flatten(1).double())
        pairs = torch.from_numpy(linear_sum_assignment(costs.numpy())[1])
        allowed = FACTOR * torch.maximum(each[0], each[1][pairs])
        # Of an expert that a draw happens to spare as much as of a usual one.
        off = changes([ours], [theirs[pairs]])[0] > allowed.clamp(min=float(allowed.median()))
        if off.any():
            return block, sorted(pairs[off].tolist())
    return None
