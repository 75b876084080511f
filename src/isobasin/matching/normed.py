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

from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from isobasin.bounds import VANISHING
from isobasin.matching.assignment import linear_sum_assignment
from isobasin.symmetries.bilinear import linear_part, plane_part
from isobasin.symmetries.centred import Centred
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.normed import MATRIX, PLANES, SIGNS, TRADES, Normed, signs_of, swapped

_POLISH = 4


_Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Parts:
    """Queries and keys of one model by what rotates and what doesn't, each as a pair of both.

    Attributes:
        linear: Columns that don't rotate, `(..., g, rows, n)`, queries of one key below each other.
        planes: Those that do, complex.
        gains: Those of every unrotated feature, `(..., holders, n, heads)`, of the query heads that a holder serves and
            of one key.
        plane_gains: Both gains of every plane beside all others that turn with it, `(..., holders, p, 2 * heads)`.
    """

    linear: _Pair
    planes: _Pair
    gains: _Pair
    plane_gains: _Pair

    @classmethod
    def of(cls, factor: Normed, weights: Parts) -> _Parts:
        columns, gains = factor.tall(weights), (weights["query_gain"], weights["key_gain"].unsqueeze(-2))
        linear, planes, own, turning = (
            (part(factor.pair, both[0]), part(factor.pair, both[1]))
            for both in (columns, gains)
            for part in (linear_part, plane_part)
        )
        query, key = (torch.view_as_real(x).movedim(-3, -2).flatten(-2) for x in turning)
        return cls(linear, planes, (own[0].mT, own[1].mT), (query, key))

    def inner(self, other: _Parts) -> Tensor:
        """γ of every unrotated feature with every one of the other model, `(..., g, n, n)`."""
        return self.linear[0].mT @ other.linear[0] + self.linear[1].mT @ other.linear[1]

    def inner_planes(self, planes: _Pair) -> Tensor:
        """γ of every plane with the other model's, `(..., g, p)`."""
        left, right = ((y.conj() * x).sum(-2) for x, y in zip(self.planes, planes, strict=True))
        return left + right


def align(factor: Normed, reference: Parts, model: Parts) -> Parts:
    """The nearest element for heads that are matched.

    Args:
        factor: Of the blocks.
        reference: Whose queries, keys and gains are to be reached.
        model: Its heads in the reference's order.
    """
    a, b = (_Parts.of(factor, factor.unsigned(weights)) for weights in (reference, model))
    unsigned = factor.identity(tuple(reference["output"].shape[:-4]), reference["output"].device)
    found = {**unsigned, **_turned_and_traded(factor, a, b)}
    return {**found, **_signs(found, reference, factor.act(found, model))}


@singledispatch
def _turned_and_traded(factor: Normed, a: _Parts, b: _Parts) -> Parts:
    """Turns, permutations and signs of every key/value head, and the trades of every holder of gains."""
    planes, plane_trades = _turns(a.inner_planes(b.planes), a.plane_gains, b.plane_gains, factor.holders)
    matrix, linear_trades = _permutations(a.inner(b), a.gains, b.gains, factor.holders)
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


@_turned_and_traded.register
def _(factor: Centred, a: _Parts, b: _Parts) -> Parts:
    """The same of heads with gains of their own and one sign each."""
    change = swapped(b.planes[0]), swapped(b.planes[1])
    inner_planes = torch.stack([a.inner_planes(planes).real for planes in (b.planes, change)])
    alternate = [_turned(x) for x in b.plane_gains]
    tried = [_best_trade(*a.plane_gains, *x) for x in (b.plane_gains, alternate)]
    plane_trades, least = (torch.stack(x) for x in zip(*tried, strict=True))
    inner = a.inner(b)
    linear_trades, linear_least = _every_trade(a.gains, b.gains)
    found: list[tuple[Tensor, ...]] = []
    for sign in (1.0, -1.0):
        costs = least - 2 * sign * inner_planes
        turn = costs.argmin(0, keepdim=True)
        linear_costs = linear_least - 2 * sign * inner
        moves = _assigned(linear_costs)
        total = costs.gather(0, turn).squeeze(0).sum(-1) + (linear_costs * moves).sum((-2, -1))
        planes = torch.where(turn.squeeze(0) == 1, torch.tensor(1j).to(b.planes[0]), 1.0) * sign
        trades = torch.cat([plane_trades.gather(0, turn).squeeze(0), (linear_trades * moves).sum(-1)], -1)
        found.append((total, moves * sign, planes, trades))
    kept = found[0][0] <= found[1][0]

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(kept.reshape(kept.shape + (1,) * (x.ndim - kept.ndim)), x, y)

    _, matrix, planes, trades = (pick(x, y) for x, y in zip(*found, strict=True))
    return {MATRIX: matrix, PLANES: planes, TRADES: trades}


def _turned(planes: Tensor) -> Tensor:
    """Gains of planes after a quarter turn, as `_Parts.plane_gains` has them: a and b alternate and become -b and a."""
    real, imaginary = planes.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imaginary, real], -1).flatten(-2)


def _turns(gamma: Tensor, theirs: _Pair, ours: _Pair, holders: int) -> _Pair:
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


def _permutations(inner: Tensor, theirs: _Pair, ours: _Pair, holders: int) -> _Pair:
    """The best signed permutation of unrotated features, `(..., g, n, n)`, and its trades, `(..., holders, n)`."""
    n = inner.shape[-1]
    if not n:
        return inner, theirs[0].sum(-1)
    trades, least = _every_trade(theirs, ours)
    shared = inner.abs().sum(-3, keepdim=True) if holders == 1 else inner.abs()
    moves = _assigned(least - 2 * shared)
    signs = torch.where(inner < 0, -1.0, 1.0).to(inner)
    return moves.expand(inner.shape) * signs, (trades * moves).sum(-1)


def _every_trade(theirs: _Pair, ours: _Pair) -> _Pair:
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


def _best_trade(query_a: Tensor, key_a: Tensor, query_b: Tensor, key_b: Tensor) -> _Pair:
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
