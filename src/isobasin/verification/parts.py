"""Parts of two models one by one, where 16 bits are stored: there rounding everywhere may hide an edit of one of them.

A part is a head, a router, an expert, a block or a layer. What it makes of some tokens is known but for a turn of the
residual stream, which leaves inner products as they are: those of what it adds to one token and to another, or of a
head's or a router's scores for one token and for another. Parts are judged by what rounding changes of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens of which inner products are kept.
_TOKENS = 32
# How many times what one rounding changes counts as rounding.
_FACTOR = 2.0
# Of what rounding changes by more than this, it doesn't say how far it might.
_LOST = 0.1
# Where nothing is made, what is compared is relative to this.
_NOTHING = 1e-100


class Parts(NamedTuple):
    """Parts of one layer that do the same, in any order.

    Attributes:
        layer: The name of the layer.
        kind: What they are, in a word or two.
        products: Inner products of what each makes of some tokens, `(parts, tokens, tokens)`.
    """

    layer: str
    kind: str
    products: Tensor

    def named(self, which: int) -> str:
        """One of them, in words."""
        number = f" {which}" if len(self.products) > 1 else ""
        return f"{self.kind}{number} of {self.layer!r}"


def products(made: Tensor) -> Tensor:
    """Inner products of what a part makes of some tokens, `(…, tokens, tokens)`, given `(…, all tokens, features)`."""
    some = made[..., :_TOKENS, :].double()
    return (some @ some.mT).cpu()


def changes(x: Tensor, y: Tensor) -> Tensor:
    """How far what parts make is from what others make after the best turn, relative, `(parts,)`.

    That is `min_Q ||X - Y Q|| / ||X||`, over orthogonal Q, and the minimum squared is `||X||² + ||Y||² - 2 ||Xᵀ Y||_*`
    (Procrustes), which products know: any rows that have these stand for X, and for Y. What is made of a token counts
    by its own size in the first, or a usual token's where that is larger: now and then one token gets a thousand times
    as much as others, and what rounding happens to change of it alone says nothing.

    Args:
        x: Products of the first, `(parts, tokens, tokens)`.
        y: Of the second, part by part; what is no number in either is infinitely far.
    """
    finite = (x.isfinite() & y.isfinite()).flatten(1).all(-1)
    x, y = (torch.where(finite[:, None, None], each, 0.0) for each in (x, y))
    sizes = x.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    sizes = sizes.clamp(min=sizes.median(-1, keepdim=True).values)
    units = (sizes.unsqueeze(-1) * sizes.unsqueeze(-2)).clamp(min=_NOTHING)
    ours, theirs = (_factor(each / units) for each in (x, y))
    whole, other = (each.square().sum((-2, -1)) for each in (ours, theirs))
    gaps = whole + other - 2 * torch.linalg.svdvals(ours.mT @ theirs).sum(-1)
    found = (gaps.clamp(min=0) / whole).sqrt().nan_to_num(0.0, torch.inf)  # 0 / 0: none is none of any size
    return torch.where(finite, found, torch.inf)


def _factor(products: Tensor) -> Tensor:
    """Rows that have these inner products."""
    squares, axes = torch.linalg.eigh(products)
    return axes * squares.clamp(min=0).sqrt().unsqueeze(-2)


class Beside(NamedTuple):
    """Parts of a second model, each beside the one of a first that is nearest.

    Attributes:
        parts: The second's.
        pairs: Which of them is beside each of the first's.
        gaps: How far it is from that, as `changes`.
    """

    parts: Parts
    pairs: Tensor
    gaps: Tensor

    def unlike(self, rounded: Sequence[Tensor], times: float) -> list[str]:
        """Which of the second's are others, in words; arguments as `unlike_parts`."""
        most = torch.maximum(rounded[0], rounded[1][self.pairs])
        # Of a part that a draw happens to spare as much as of a usual one.
        most = most.clamp(min=float(most.median()))
        off = (self.gaps > times * _FACTOR * most) & (most < _LOST)
        return [self.parts.named(which) for which in sorted(self.pairs[off].tolist())]


def beside(x: Parts, y: Parts) -> Beside | None:
    """One model's parts and another's; None where they can't be compared."""
    from scipy.optimize import linear_sum_assignment

    ours, theirs = x.products, y.products
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return None
    costs = torch.cdist(ours.flatten(1).double(), theirs.flatten(1).double())
    pairs = torch.from_numpy(linear_sum_assignment(costs.numpy())[1])
    return Beside(y, pairs, changes(ours, theirs[pairs]))


def unlike_parts(
    compared: Sequence[Beside | None], rounded: Sequence[Sequence[Tensor]], times: float = 1.0
) -> tuple[str, ...]:
    """Which parts of a second model are others, in words: in every layer the first kind of which any is.

    Args:
        compared: The models' parts, in turn.
        rounded: What rounding changes of either, as `changes` has it.
        times: How many times as far as parts may be they are.
    """
    found: dict[str, list[str]] = {}
    for each, *most in zip(compared, *rounded, strict=True):
        if each is not None and each.parts.layer not in found and (off := each.unlike(most, times)):
            found[each.parts.layer] = off
    return tuple(name for names in found.values() for name in names)
