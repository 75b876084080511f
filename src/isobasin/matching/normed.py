"""Stage 2 where queries and keys are normalised: every sign, turn, permutation and trade, exactly.

After heads are matched, what is left is discrete but for one number per pair of gains, and separates. With
`γ_h = Σ q_B^H q_A + k_B^H k_A` of a plane of head h (biases are one more row), a head's best sign adds
`|Re(ū γ_h)|` to the inner product of both models, for the turn u = 1 or i that all heads with common gains share; an
unrotated feature that becomes another one adds `Σ_h |γ_h|`, so which becomes which is an assignment. What gains add to
either follows from the best trade, a root of a quartic:

    minimise  ||a_A - c a_B||² + ||b_A - b_B / c||²   over c ≠ 0.                                        (1)

Where LayerNorm leaves a head one sign for all its features, both are tried: with either all else separates as before.

All this is of weights whose gains are positive (`Normed.unsigned`). Signs of columns, with their gains, come last: each
adds the size of one inner product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isobasin.bounds import VANISHING
from isobasin.symmetries.bilinear import BilinearGroup, linear_part, plane_part
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.normed import MATRIX, PLANES, SIGNS, TRADES, Centred, Normed, signs_of, swapped

_POLISH = 4


@dataclass(frozen=True)
class _Gains:
    """Gains of queries and keys; leading dimensions `(..., holders)`.

    Attributes:
        query: Of every query head that a holder serves, `(..., holders, heads, features)`.
        key: `(..., holders, 1, features)`.
    """

    query: Tensor
    key: Tensor

    @classmethod
    def of(cls, weights: Parts) -> _Gains:
        return cls(weights["query_gain"], weights["key_gain"].unsqueeze(-2))

    def planes(self, pair: BilinearGroup) -> tuple[Tensor, Tensor]:
        """Both gains of every plane beside all others that turn with it, `(..., holders, p, 2 * heads)`."""
        found = (plane_part(pair, gains) for gains in (self.query, self.key))
        query, key = (torch.view_as_real(x).movedim(-3, -2).flatten(-2) for x in found)
        return query, key

    def linear(self, pair: BilinearGroup) -> tuple[Tensor, Tensor]:
        """The gains of every unrotated feature, `(..., holders, n, heads)`."""
        query, key = (linear_part(pair, gains).mT for gains in (self.query, self.key))
        return query, key


@dataclass(frozen=True)
class _Columns:
    """Columns of queries and keys, `(..., g, rows, n)`, queries of one key below each other.

    Attributes:
        left: Of queries, those that don't rotate.
        right: Of keys.
        left_planes: The planes of queries, complex.
        right_planes: Of keys.
    """

    left: Tensor
    right: Tensor
    left_planes: Tensor
    right_planes: Tensor

    @classmethod
    def of(cls, factor: Normed, weights: Parts) -> _Columns:
        query, key = factor.tall(weights)
        linear = (linear_part(factor.pair, x) for x in (query, key))
        return cls(*linear, *(plane_part(factor.pair, x) for x in (query, key)))


def align(factor: Normed, reference: Parts, model: Parts) -> Parts:
    """The nearest element for heads that are matched.

    Args:
        factor: Of the blocks.
        reference: Whose queries, keys and gains are to be reached.
        model: Its heads in the reference's order.
    """
    plain = [factor.unsigned(weights) for weights in (reference, model)]
    a, b = (_Columns.of(factor, weights) for weights in plain)
    theirs, ours = (_Gains.of(weights) for weights in plain)
    unsigned = factor.identity(tuple(reference["output"].shape[:-4]), reference["output"].device)
    found = {**unsigned, **_turned_and_traded(factor, a, b, theirs, ours)}
    return {**found, **_signs(found, reference, factor.act(found, model))}


@singledispatch
def _turned_and_traded(factor: Normed, a: _Columns, b: _Columns, theirs: _Gains, ours: _Gains) -> Parts:
    """Turns, permutations and signs of every key/value head, and the trades of every holder of gains."""
    pair, holders = factor.pair, factor.holders
    planes, plane_trades = _turns(_inner_planes(a, b), theirs.planes(pair), ours.planes(pair), holders)
    matrix, linear_trades = _permutations(_inner(a, b), theirs.linear(pair), ours.linear(pair), holders)
    return {MATRIX: matrix, PLANES: planes, TRADES: torch.cat([plane_trades, linear_trades], -1)}


def _signs(element: Parts, reference: Parts, moved: Parts) -> Parts:
    """The column signs of queries and keys that bring a model moved by an element without them nearest."""
    products = {name: x * moved[name] for name, x in reference.items()}

    def nearest(role: str, like: Tensor) -> Tensor:
        others = [products[name] for name in (f"{role}_bias", f"{role}_gain") if name in products]
        inner = torch.zeros_like(like)
        for x in (products[role].sum(-2), *others):
            inner = inner + x.sum_to_size(like.shape)
        return signs_of(inner)

    return {name: nearest(role, element[name]) for role, name in SIGNS.items()}


def _inner_planes(a: _Columns, b: _Columns) -> Tensor:
    """γ of every plane, `(..., g, p)`."""
    left = (b.left_planes.conj() * a.left_planes).sum(-2)
    return left + (b.right_planes.conj() * a.right_planes).sum(-2)


def _inner(a: _Columns, b: _Columns) -> Tensor:
    """γ of every unrotated feature of the reference with every one of the model, `(..., g, n, n)`."""
    return a.left.mT @ b.left + a.right.mT @ b.right


@_turned_and_traded.register
def _(factor: Centred, a: _Columns, b: _Columns, theirs: _Gains, ours: _Gains) -> Parts:
    """The same of heads with gains of their own and one sign each."""
    pair = factor.pair
    change = replace(b, left_planes=swapped(b.left_planes), right_planes=swapped(b.right_planes))
    inner_planes = torch.stack([_inner_planes(a, x).real for x in (b, change)])
    alternate = [_turned(x) for x in ours.planes(pair)]
    tried = [_best_trade(*theirs.planes(pair), *x) for x in (ours.planes(pair), alternate)]
    plane_trades, least = (torch.stack(x) for x in zip(*tried, strict=True))
    inner = _inner(a, b)
    linear_trades, linear_least = _every_trade(theirs.linear(pair), ours.linear(pair))
    found: list[tuple[Tensor, ...]] = []
    for sign in (1.0, -1.0):
        costs = least - 2 * sign * inner_planes
        turn = costs.argmin(0, keepdim=True)
        linear_costs = linear_least - 2 * sign * inner
        moves = _assigned(linear_costs)
        total = costs.gather(0, turn).squeeze(0).sum(-1) + (linear_costs * moves).sum((-2, -1))
        planes = torch.where(turn.squeeze(0) == 1, torch.tensor(1j).to(b.left_planes), 1.0) * sign
        trades = torch.cat([plane_trades.gather(0, turn).squeeze(0), (linear_trades * moves).sum(-1)], -1)
        found.append((total, moves * sign, planes, trades))
    kept = found[0][0] <= found[1][0]

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(kept.reshape(kept.shape + (1,) * (x.ndim - kept.ndim)), x, y)

    _, matrix, planes, trades = (pick(x, y) for x, y in zip(*found, strict=True))
    return {MATRIX: matrix, PLANES: planes, TRADES: trades}


def _turned(planes: Tensor) -> Tensor:
    """Gains of planes after a quarter turn, as `_Gains.planes` has them: a and b alternate and become -b and a."""
    real, imaginary = planes.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imaginary, real], -1).flatten(-2)


def _turns(
    gamma: Tensor, theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor], holders: int
) -> tuple[Tensor, Tensor]:
    """The best u of every plane, `(..., g, p)`, and its holders' trades, `(..., holders, p)`."""
    # A quarter turn lets a plane's two gains change places: they alternate in the last dimension.
    swapped = [x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) for x in ours]
    found = [_best_trade(*theirs, *x) for x in (ours, swapped)]
    inner = torch.stack([gamma.real.abs(), gamma.imag.abs()])
    shared = inner.sum(-2, keepdim=True) if holders == 1 else inner
    turn = (found[1][1] - 2 * shared[1]) < (found[0][1] - 2 * shared[0])
    trades = torch.where(turn, found[1][0], found[0][0])
    turn = turn.expand(gamma.shape)
    sign = torch.where(torch.where(turn, gamma.imag, gamma.real) < 0, -1.0, 1.0).to(gamma.real)
    zero = torch.zeros_like(sign)
    return torch.where(turn, torch.complex(zero, sign), torch.complex(sign, zero)), trades


def _permutations(
    inner: Tensor, theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor], holders: int
) -> tuple[Tensor, Tensor]:
    """The best signed permutation of unrotated features, `(..., g, n, n)`, and its trades, `(..., holders, n)`."""
    n = inner.shape[-1]
    if not n:
        return inner, theirs[0].sum(-1)
    trades, least = _every_trade(theirs, ours)
    shared = inner.abs().sum(-3, keepdim=True) if holders == 1 else inner.abs()
    moves = _assigned(least - 2 * shared)
    signs = torch.where(inner < 0, -1.0, 1.0).to(inner)
    return moves.expand(inner.shape) * signs, (trades * moves).sum(-1)


def _every_trade(theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`_best_trade` of every unrotated feature with every one, `(..., holders, n, n)`."""
    return _best_trade(*(x.unsqueeze(-2) for x in theirs), *(x.unsqueeze(-3) for x in ours))


def _assigned(costs: Tensor) -> Tensor:
    """The permutation matrices of least cost, `(..., n, n)`."""
    n = costs.shape[-1]
    if not n:
        return costs
    chosen = np.stack([linear_sum_assignment(table)[1] for table in costs.reshape(-1, n, n).cpu().numpy()])
    order = torch.from_numpy(chosen).reshape(costs.shape[:-1]).to(costs.device)
    return torch.nn.functional.one_hot(order, n).to(costs)


def _best_trade(query_a: Tensor, key_a: Tensor, query_b: Tensor, key_b: Tensor) -> tuple[Tensor, Tensor]:
    """The global minimiser of (1) and its value less the constant `||a_A||² + ||b_A||²`.

    Its derivative's numerator is `η_a c⁴ - γ_a c³ + γ_b c - η_b`, with `η` the squared norms of B's gains and `γ` their
    inner products with A's. It has a positive and a negative root, and the objective's least value is at a real one.
    """
    eta_a, eta_b = query_b.square().sum(-1).clamp(min=VANISHING), key_b.square().sum(-1).clamp(min=VANISHING)
    gamma_a, gamma_b = (query_a * query_b).sum(-1), (key_a * key_b).sum(-1)
    zero = torch.zeros_like(eta_a + gamma_a)
    last = torch.stack([gamma_a / eta_a, zero, -gamma_b / eta_a, eta_b / eta_a + zero], -1)
    companion = torch.diag_embed(torch.ones(3, dtype=last.dtype, device=last.device), -1).expand(*last.shape, 4).clone()
    companion[..., 0, :] = last
    roots = torch.linalg.eigvals(companion).real
    roots = torch.where(roots.abs() < VANISHING, 1.0, roots)

    def value(c: Tensor, a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return c.square() * a + b / c.square() - 2 * (c * x + y / c)

    known = eta_a, eta_b, gamma_a, gamma_b
    which = value(roots, *(x.unsqueeze(-1) for x in known)).argmin(-1, keepdim=True)
    c = roots.gather(-1, which).squeeze(-1)
    # The least value is flat: only after it is chosen a root is polished, or a neighbour of it might win by rounding.
    for _ in range(_POLISH):
        slope = (4 * eta_a * c - 3 * gamma_a) * c.square() + gamma_b
        step = c - (((eta_a * c - gamma_a) * c.square() + gamma_b) * c - eta_b) / slope
        c = torch.where(step.isfinite() & (step != 0), step, c)
    return c, value(c, *known)
