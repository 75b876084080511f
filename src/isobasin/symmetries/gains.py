"""What is left of a head's Q-K group where queries and keys are normalised: signs, turns, and gains that trade.

With `q = norm(x Q) ∘ a` and `k = norm(x K) ∘ b` before they rotate, these leave all scores as they are:

    signs:          q_p <- -q_p, k_p <- -k_p on a plane, or an unrotated feature, of one key/value head
    quarter turns:  q_p <- i q_p, k_p <- i k_p on a plane, while its two gains change places
    permutations:   of unrotated features, gains likewise
    trades:         a <- a c, b <- b / c, with one c ≠ 0 for each plane and each unrotated feature

Heads that share gains turn and permute together. Turns, signs and permutations are a `BilinearElement` whose complex
numbers are ±1 and ±i and whose matrix is a signed permutation, so that Q and K move by it as they do without a norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isobasin.symmetries import bilinear
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup


def turned(element: BilinearElement) -> Tensor:
    """Which planes make a quarter turn, `(..., p)`."""
    return element.planes.imag.abs() > element.planes.real.abs()


def carried(pair: BilinearGroup, element: BilinearElement, gains: Tensor) -> Tensor:
    """Gains that go along with turns and permutations.

    Args:
        pair: The Q-K pair.
        element: Of batch shape `*batch`.
        gains: `(*batch, rows, features)`.
    """
    linear = bilinear.linear_part(pair, gains) @ element.matrix.abs().mT
    if not pair.planes:
        return linear
    planes = bilinear.plane_part(pair, gains)
    swapped = torch.complex(planes.imag, planes.real)
    return bilinear.join(pair, linear, torch.where(turned(element).unsqueeze(-2), swapped, planes))


def spread(pair: BilinearGroup, trades: Tensor) -> Tensor:
    """One factor per feature, `(..., features)`, from one per plane and then one per unrotated feature."""
    planes, linear = trades.split([len(pair.planes), len(pair.linear)], -1)
    return bilinear.join(pair, linear.unsqueeze(-2), torch.complex(planes, planes).unsqueeze(-2)).squeeze(-2)


def permuted(pair: BilinearGroup, element: BilinearElement, trades: Tensor) -> Tensor:
    """Trades after an element's permutation of unrotated features, `(..., p + n)`."""
    if not trades.shape[-1]:
        return trades
    planes, linear = trades.split([len(pair.planes), len(pair.linear)], -1)
    return torch.cat([planes, (element.matrix.abs() @ linear.unsqueeze(-1)).squeeze(-1)], -1)


def holders(group: AttentionGroup, element: BilinearElement) -> BilinearElement:
    """The heads whose turns and permutations the gains follow: all, or the first where they share."""
    heads = group.trades[0]
    return BilinearElement(element.matrix[..., :heads, :, :], element.planes[..., :heads, :])


def identity(group: AttentionGroup, batch: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Trades of 1, `(*batch, heads, p + n)`; empty without norm."""
    return torch.ones(*batch, *group.trades, dtype=torch.float64, device=device)


def sample(
    group: AttentionGroup, batch: tuple[int, ...], generator: torch.Generator, condition: float
) -> tuple[BilinearElement, Tensor]:
    """Random signs, turns and permutations, and trades of either sign up to `condition`, evenly in the logarithm."""
    pair, (heads, features) = group.query_key, group.trades
    n, p = len(pair.linear), len(pair.planes)

    def coins(*shape: int) -> Tensor:
        return torch.randint(2, (*batch, *shape), generator=generator).bool()

    def signs(*shape: int) -> Tensor:
        return torch.where(coins(*shape), 1.0, -1.0).double()

    turns = torch.where(coins(heads, p), torch.tensor(1j), torch.tensor(1.0 + 0j)).to(torch.complex128)
    order = torch.rand(*batch, heads, n, generator=generator, dtype=torch.float64).argsort(-1)
    matrix = torch.nn.functional.one_hot(order, n).double() if n else torch.zeros(*batch, heads, 0, 0).double()
    element = BilinearElement(
        matrix.expand(*batch, group.groups, n, n) * signs(group.groups, n).unsqueeze(-1),
        turns.expand(*batch, group.groups, p) * signs(group.groups, p),
    )
    size = (2 * torch.rand(*batch, heads, features, generator=generator, dtype=torch.float64) - 1) * math.log(condition)
    return element, (0.5 * size).exp() * signs(heads, features)


def contains(group: AttentionGroup, element: BilinearElement, trades: Tensor) -> bool:
    """Whether these are signs, turns and permutations that heads with common gains share, and trades that exist."""
    units = element.planes.real.abs() + element.planes.imag.abs() == 1
    exact = bool((units & (element.planes.real * element.planes.imag == 0)).all())
    moves = element.matrix.abs()
    exact &= bool(((moves == 0) | (moves == 1)).all() and (moves.sum(-1) == 1).all() and (moves.sum(-2) == 1).all())
    first = holders(group, element)
    shared = bool((moves == first.matrix.abs()).all()) and bool((turned(element) == turned(first)).all())
    return exact and shared and bool((trades != 0).all())
