"""What is left of a head's Q-K group where queries and keys are normalised: signs, turns, and gains that trade.

With `q = norm(x Q) ∘ a` and `k = norm(x K) ∘ b` before they rotate, these leave all scores as they are:

    signs:          q_p <- -q_p, k_p <- -k_p on a plane, or an unrotated feature, of one key/value head
    quarter turns:  q_p <- i q_p, k_p <- i k_p on a plane, while its two gains change places
    permutations:   of unrotated features, gains likewise
    trades:         a <- a c, b <- b / c, with one c ≠ 0 for each plane and each unrotated feature
    column signs:   a feature of q, or of k, with its gain, in all heads that share the gain

Heads that share gains turn and permute together. A trade of -1 is made of signs. Turns, permutations and signs of both
q and k are a `BilinearElement` whose complex numbers are ±1 and ±i and whose matrix is a signed permutation, so that Q
and K move by it as they do without a norm.

LayerNorm lets only one sign pass, of all features of a head. A quarter turn is one of the gains, `a_p <- i a_p`,
`b_p <- i b_p`, while the plane's two features change places in Q and K; two of them are a trade of -1. The complex
numbers are then ±1 and ±i with the head's sign. A head's query, or its key, changes its sign with all of its gains.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from isobasin.symmetries import bilinear
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights

# What LayerNorm is of.
_READERS = ("query", "key", "query_bias", "key_bias")


def turned(element: BilinearElement) -> Tensor:
    """Which planes make a quarter turn, `(..., p)`."""
    return element.planes.imag.abs() > element.planes.real.abs()


def swapped(planes: Tensor) -> Tensor:
    """Planes whose two features changed places."""
    return torch.complex(planes.imag, planes.real)


def carried(group: AttentionGroup, element: BilinearElement, gains: Tensor) -> Tensor:
    """Gains that go along with turns and permutations.

    Args:
        group: The block's.
        element: Of batch shape `*batch`.
        gains: `(*batch, rows, features)`.
    """
    pair = group.query_key
    linear = bilinear.linear_part(pair, gains) @ element.matrix.abs().mT
    if not pair.planes:
        return linear
    planes = bilinear.plane_part(pair, gains)
    other = 1j * planes if group.norm is QueryKeyNorm.centred else swapped(planes)
    return bilinear.join(pair, linear, torch.where(turned(element).unsqueeze(-2), other, planes))


def act(pair: BilinearGroup, element: BilinearElement, x: Tensor) -> Tensor:
    """Q or K of normed heads whose mean is subtracted, `(*batch, rows, features)`: signs, places, no turns."""
    planes = bilinear.plane_part(pair, x)
    moved = torch.where(turned(element).unsqueeze(-2), swapped(planes), planes)
    linear = bilinear.linear_part(pair, x) @ element.matrix.mT
    return bilinear.join(pair, linear, moved * sign(element)[..., None, None])


def _signs(element: BilinearElement) -> Tensor:
    """Of every plane, turned or not, `(..., p)`."""
    return element.planes.real + element.planes.imag


def sign(element: BilinearElement) -> Tensor:
    """That of all features of a head whose mean is subtracted, `(...)`."""
    return _signs(element)[..., 0]


def settled(
    group: AttentionGroup, element: BilinearElement, trades: Tensor, *factors: BilinearElement
) -> tuple[BilinearElement, Tensor]:
    """A product of elements, or an inverse, with one sign for all planes where LayerNorm asks for it.

    The sign is that of the factors; planes of the other one were turned twice, so theirs is traded.
    """
    if group.norm is not QueryKeyNorm.centred:
        return element, trades
    left = _signs(element) * torch.stack([sign(x) for x in factors]).prod(0).unsqueeze(-1)
    planes, linear = trades.split([len(group.query_key.planes), len(group.query_key.linear)], -1)
    return replace(element, planes=element.planes * left), torch.cat([planes * left, linear], -1)


def centred(weights: AttentionWeights) -> tuple[AttentionWeights, dict[str, Tensor]]:
    """The weights without the means of queries and keys over a head's features, and these means."""
    parts = weights.tensors()
    means = {name: parts[name].mean(-1, keepdim=True) for name in _READERS if name in parts}
    return replace(weights, **{name: parts[name] - mean for name, mean in means.items()}), means


def shifted(weights: AttentionWeights, means: dict[str, Tensor]) -> AttentionWeights:
    """The weights with multiples of the vector of ones added, `(..., inputs)` for `query` and `key` each."""
    found = weights.tensors()
    for role, mean in means.items():
        width = weights.width
        found[role] = found[role] + mean[..., :width, None]
        if f"{role}_bias" in found:
            found[f"{role}_bias"] = found[f"{role}_bias"] + mean[..., width:]
    return AttentionWeights(**found)


def flipped(weights: AttentionWeights, query: Tensor, key: Tensor) -> AttentionWeights:
    """The weights with queries' and keys' columns, biases and gains times signs that lie as gains do."""
    found = weights.tensors()
    for role, signs in (("query", query), ("key", key)):
        found[role] = found[role] * signs.unsqueeze(-2)
        for name in (f"{role}_bias", f"{role}_gain"):
            if name in found:
                found[name] = found[name] * signs
    return AttentionWeights(**found)


def deciding(group: AttentionGroup, weights: AttentionWeights) -> tuple[Tensor, Tensor]:
    """The numbers of queries and of keys whose signs column signs choose: gains; with LayerNorm, of queries `Σ a b`.

    Trades of either sign leave that as it is, and a key's sign is made of trades and of the signs of its queries.
    """
    assert weights.query_gain is not None
    assert weights.key_gain is not None
    if group.norm is not QueryKeyNorm.centred:
        return weights.query_gain, weights.key_gain
    products = (weights.query_gain * weights.key_gain.unsqueeze(-2)).sum(-1, keepdim=True)
    return products, torch.ones_like(weights.key_gain[..., :1])


def unsigned(group: AttentionGroup, weights: AttentionWeights) -> AttentionWeights:
    """The weights with the signs that make all `deciding` numbers positive: what matching compares."""
    return flipped(weights, *(signs_of(x) for x in deciding(group, weights)))


def signs_of(x: Tensor) -> Tensor:
    """1 and -1; 1 of zero."""
    return torch.where(x < 0, -1.0, 1.0).to(x)


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


def unflipped(
    group: AttentionGroup, batch: tuple[int, ...], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Signs of 1 of queries' columns, `(*batch, heads, queries, n)`, and of keys', `(*batch, heads, n)`.

    Heads as gains have them; n is 1 where a head has one sign, and 0 without norm.
    """
    heads, queries = (group.groups, group.queries) if group.own_gains else (1, 1)
    shapes = (heads, queries, group.signs), (heads, group.signs)
    query, key = (torch.ones(*batch, *shape, dtype=torch.float64, device=device) for shape in shapes)
    return query, key


def sample(
    group: AttentionGroup, batch: tuple[int, ...], generator: torch.Generator, condition: float
) -> tuple[BilinearElement, Tensor, Tensor, Tensor]:
    """Random signs, turns and permutations; trades of either sign up to `condition`, evenly in the logarithm; and
    column signs of queries and keys.
    """
    pair, (heads, features) = group.query_key, group.trades
    n, p = len(pair.linear), len(pair.planes)

    def coins(*shape: int) -> Tensor:
        return torch.randint(2, (*batch, *shape), generator=generator).bool()

    def signs(*shape: int) -> Tensor:
        return torch.where(coins(*shape), 1.0, -1.0).double()

    turns = torch.where(coins(heads, p), torch.tensor(1j), torch.tensor(1.0 + 0j)).to(torch.complex128)
    one = group.norm is QueryKeyNorm.centred
    order = torch.rand(*batch, heads, n, generator=generator, dtype=torch.float64).argsort(-1)
    matrix = torch.nn.functional.one_hot(order, n).double() if n else torch.zeros(*batch, heads, 0, 0).double()
    rows = signs(group.groups, 1 if one else n)
    element = BilinearElement(
        matrix.expand(*batch, group.groups, n, n) * rows.unsqueeze(-1),
        turns.expand(*batch, group.groups, p) * (rows if one else signs(group.groups, p)),
    )
    size = (2 * torch.rand(*batch, heads, features, generator=generator, dtype=torch.float64) - 1) * math.log(condition)
    trades = (0.5 * size).exp() * signs(heads, features)
    query, key = (signs(*x.shape) for x in unflipped(group, ()))
    return element, trades, query, key


def contains(group: AttentionGroup, element: BilinearElement, trades: Tensor) -> bool:
    """Whether these are signs, turns and permutations that heads with common gains share, and trades that exist."""
    units = element.planes.real.abs() + element.planes.imag.abs() == 1
    exact = bool((units & (element.planes.real * element.planes.imag == 0)).all())
    moves = element.matrix.abs()
    exact &= bool(((moves == 0) | (moves == 1)).all() and (moves.sum(-1) == 1).all() and (moves.sum(-2) == 1).all())
    if group.norm is QueryKeyNorm.centred:
        signs = sign(element).unsqueeze(-1)
        exact &= bool((_signs(element) == signs).all() and (element.matrix.sum(-1) == signs).all())
    first = holders(group, element)
    shared = bool((moves == first.matrix.abs()).all()) and bool((turned(element) == turned(first)).all())
    return exact and shared and bool((trades != 0).all())
