"""Which units of two feed-forward blocks belong together, and the scales that bring them nearest.

The distance is a sum over units, so the best scales of every pair of units and then one assignment over all pairs
give the joint optimum over permutations and scales. With `η = ||row||²` of the model, `γ = <row, row_A>`, biases as
one more entry, a branch scaled by s and `down` by `s^-m` cost, up to a constant,

    η s² - 2 γ s + η' s^{-2m} - 2 γ' s^{-m},                                                              (1)

whose stationary points for m = 1 are the roots of `η s⁴ - γ s³ + γ' s - η'`. Inner products of all pairs are matrix
products; nothing of size f × f × d is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isobasin.bounds import UNHEARD, VANISHING
from isobasin.matching.assignment import Rough, by_candidates, large, linear_sum_assignment
from isobasin.matching.nearest import plain_partners
from isobasin.matching.products import dots, roughest, with_rows
from isobasin.matching.scales import lowest
from isobasin.symmetries.feedforward import FeedForwardGroup, Scale

# Pairs of units whose scales are computed at once: their temporaries then stay in a processor's cache.
_PAIRS = 2**15
# Rows of the products that these are taken from: of a few rows products take twice as long.
_ROWS = 256
# Of coordinate descent where both branches of a gated unit have scales. An error of the scales is squared in a cost,
# so that costs need few; those of the chosen pairs go on until nothing changes.
_COST_SWEEPS = 12
_SWEEPS = 1000
# What is added to the terms of a product where its rounding is bounded: those of its operands, and of what follows.
_SOME = 16
# Squared norms of which products in float32 have nothing but their rounding.
_SINGLE = 1e-20, 1e20
# Pairs of units whose exact costs are computed at once.
_COUPLES = 256


@dataclass(frozen=True)
class _Pairs:
    """What (1) needs of pairs of units: η and γ of every branch by name, of shapes that broadcast."""

    eta: dict[str, Tensor]
    gamma: dict[str, Tensor]


Rows = Tensor | slice
"""Which units, by their numbers."""


def partners(
    group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor], *, rough: bool = False
) -> tuple[Tensor, bool]:
    """Which unit of the model each of the reference's gets: the assignment of least squared distance over scales.

    Args:
        group: Of the block.
        a: The reference's branches.
        b: The model's.
        rough: Of many units without plain partners, take an assignment that is only nearly the best.

    Returns:
        Their numbers, and whether others may be a little nearer.
    """
    plain = _plain(group, a, b)
    if plain is not None:
        return plain, False
    roughly = rough and large(group.units) and _bounded(group, a, b)
    return _near(group, a, b) if roughly else _assigned(group, a, b), roughly


def best_scales(
    group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor], order: Tensor
) -> tuple[Tensor, Tensor]:
    """The scales of `up` and `gate` that bring units nearest to their partners'."""
    return _scales(group, _couples(a, b, slice(None), order), _SWEEPS)


def least_distance(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The least squared distance of two blocks' units over all moves."""
    order, _ = partners(group, a, b)
    return float(_distances(group, a, b, slice(None), order).sum())


def _plain(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor | None:
    """Partners where nearly all are plain to see; None elsewhere."""
    plain = plain_partners(a, b, lambda i, j: _distances(group, a, b, i, j))
    if plain is None:
        return None
    chosen, rest = plain
    # Where those in doubt take nobody's partner, no assignment costs less than all these together.
    some = unit_costs(group, {name: branch[rest] for name, branch in a.items()}, b)
    chosen[rest] = torch.from_numpy(linear_sum_assignment(some)[1]).to(chosen.device)
    return chosen if len(chosen.unique()) == group.units else None


def _assigned(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Partners from the costs of all pairs."""
    found = by_candidates(_rough(group, a, b)) if large(group.units) and _bounded(group, a, b) else None
    if found is None:
        found = linear_sum_assignment(unit_costs(group, a, b))[1]
    return torch.from_numpy(found).to(a["up"].device)


def _near(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Nearly the same, by the costs of all pairs as rough products make them."""
    device = a["up"].device
    found = by_candidates(unit_costs(group, a, b, roughest(device)), finer=False)
    return _assigned(group, a, b) if found is None else torch.from_numpy(found).to(device)


def _bounded(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether costs in float32 are bounded: the best scales are known, and no number is too small or large."""
    if group.up is not Scale.none and group.gate not in (None, Scale.none, Scale.sign):
        return False
    sizes = torch.cat([dots(branch, branch) for side in (a, b) for branch in side.values()])
    low, high = _SINGLE
    return not bool(((sizes > 0) & ((sizes < low) | (sizes > high))).any())


def _rough(group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor]) -> Rough:
    """The costs of all pairs in float32, and those that could matter as they are.

    With x all branches of a unit of the reference and y those of one of the model at their best scales, an inner
    product is wrong by `ε ||x|| ||y||` at most, ε the unit roundoff times the terms of a sum and some more. So a pair
    of cost c seems dearer by `2 ε ||x|| ||y||` and some roundings of `||y||²` and of that product, and if c is less
    than p, then `||y|| <= ||x|| + (||x||² + p)^{1/2}`, as c is `||x - y||² - ||x||²`.
    """
    device, eps = a["up"].device, torch.finfo(torch.float32).eps
    norms = torch.stack([dots(branch, branch) for branch in a.values()]).sum(0).sqrt().cpu().numpy()
    terms = max(branch.shape[-1] for branch in a.values()) + _SOME

    def exact(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        couples = (torch.from_numpy(x).to(device).split(_COUPLES) for x in (rows, columns))
        found = [_least_costs(group, _couples(a, b, *some)) for some in zip(*couples, strict=True)]
        return torch.cat(found).cpu().numpy()

    def blur(price: np.ndarray) -> np.ndarray:
        size = norms + np.sqrt((norms**2 + price).clip(min=0))
        return eps * size * (terms * norms + _SOME * size)

    return Rough(unit_costs(group, a, b, torch.float32), exact, blur)


def _couples(a: dict[str, Tensor], b: dict[str, Tensor], ours: Rows, theirs: Tensor) -> _Pairs:
    """The pairs of some units of the reference and as many of the model."""
    rows = {name: branch[theirs] for name, branch in b.items()}
    gamma = {name: dots(branch[ours], rows[name]) for name, branch in a.items()}
    return _Pairs({name: dots(branch, branch) for name, branch in rows.items()}, gamma)


def _distances(
    group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor], ours: Rows, theirs: Tensor
) -> Tensor:
    """The least squared distances of such pairs over all scales, or where both branches have some, one that is near."""
    pairs = _couples(a, b, ours, theirs)
    own = sum(dots(branch[ours], branch[ours]) for branch in a.values())
    return own + _least_costs(group, pairs)


def unit_costs(
    group: FeedForwardGroup, a: dict[str, Tensor], b: dict[str, Tensor], dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """The least squared distance over scales of every pair of units, less the reference's norms, `(f, f)`.

    In float64, or in float32 from products of factors in a narrower type.
    """
    units, others = len(a["up"]), len(b["up"])
    kind = torch.promote_types(dtype, torch.float32)
    costs = np.empty((units, others), np.float32 if kind is torch.float32 else float)
    eta = {name: dots(branch, branch).to(kind) for name, branch in b.items()}
    inner = {name: with_rows(branch, dtype) for name, branch in b.items()}
    step = max(1, _PAIRS // others)
    for start in range(0, units, _ROWS):
        gammas = {name: inner[name](branch[start : start + _ROWS]).split(step) for name, branch in a.items()}
        for i, parts in enumerate(zip(*gammas.values(), strict=True)):
            pairs = _Pairs(eta, {name: part.to(kind) for name, part in zip(gammas, parts, strict=True)})
            first = start + i * step
            costs[first : first + len(parts[0])] = _least_costs(group, pairs).cpu().numpy()
    return costs


def _least_costs(group: FeedForwardGroup, pairs: _Pairs) -> Tensor:
    """The least squared distances of pairs over scales, less the reference's norms."""
    return _value(group, pairs, *_scales(group, pairs, _COST_SWEEPS))


def _value(group: FeedForwardGroup, pairs: _Pairs, up: Tensor, gate: Tensor) -> Tensor:
    """The squared distance at given scales, less the reference's norms."""
    m, n = group.powers
    scales = {"up": up, "gate": gate, "down": 1 / (up**m * gate**n)}
    value = torch.zeros_like(up)
    for name, eta in pairs.eta.items():
        value += scales[name] * (scales[name] * eta - 2 * pairs.gamma[name])
    return value


def _scales(group: FeedForwardGroup, pairs: _Pairs, sweeps: int) -> tuple[Tensor, Tensor]:
    """The best scales `(s, r)` of the up and gate branches of every pair."""
    m, n = group.powers
    ones = torch.ones_like(pairs.gamma["up"])

    def up_for(gate: Tensor) -> Tensor:
        return _scale(group.up, m, pairs, "up", gate**-n)

    if group.gate is None or group.gate is Scale.none:
        return _scale(group.up, m, pairs, "up"), ones
    if group.gate is Scale.sign:
        options = [(up_for(r), r) for r in (ones, -ones)]
        values = [_value(group, pairs, *option) for option in options]
        first = values[0] <= values[1]
        return torch.where(first, options[0][0], options[1][0]), torch.where(first, ones, -ones)
    up, gate = ones, _level(group, pairs.eta) * ones
    for _ in range(sweeps):
        up, old = up_for(gate), gate
        gate = _scale(group.gate, n, pairs, "gate", up**-m)
        if bool(((gate - old).abs() <= 1e-14 * gate).all()):
            break
    return up_for(gate), gate


def _level(group: FeedForwardGroup, eta: dict[str, Tensor]) -> Tensor:
    """The gate's scale at which all three branches of a unit have one norm."""
    m, n = group.powers
    up, gate, down = (eta[name].clamp(min=VANISHING).log() / 2 for name in ("up", "gate", "down"))
    level = (down + m * up + n * gate) / (1 + m + n)
    return (level - gate).exp()


def _scale(kind: Scale, power: int, pairs: _Pairs, branch: str, down: Tensor | None = None) -> Tensor:
    """The best scale of one branch, where `down` is what the other one multiplies the down row by."""
    eta, gamma = pairs.eta[branch], pairs.gamma[branch]
    eta_down, gamma_down = pairs.eta["down"], pairs.gamma["down"]
    if down is not None:
        eta_down, gamma_down = eta_down * down.square(), gamma_down * down
    if kind is Scale.none:
        return torch.ones_like(gamma)
    if kind is Scale.sign:
        return torch.where(gamma + gamma_down < 0, -torch.ones_like(gamma), torch.ones_like(gamma))
    least = max(VANISHING, torch.finfo(eta.dtype).tiny)
    dead = (eta < least) | (eta_down < least)
    eta, eta_down = (e.clamp(min=least) for e in (eta, eta_down))
    balance = (eta_down / eta) ** (0.5 / (1 + power))
    level = eta * balance.square()
    p, q = gamma * (balance / level), gamma_down / (level * balance**power)
    sign = torch.ones_like(p)
    if kind is Scale.signed:
        # With w -> 1/w, f at (p, q) becomes f at (q, p): the sign that makes p + q positive has the lower minimum.
        sign = torch.where(p + q < 0, -sign, sign)
    scale = lowest(sign * p, sign * q, power) * sign * balance
    # Most blocks have no such unit, and every pair would be looked at.
    return torch.where(dead, _one_sided(kind, power, pairs, branch, least), scale) if bool(dead.any()) else scale


def _one_sided(kind: Scale, power: int, pairs: _Pairs, branch: str, least: float) -> Tensor:
    """The best scale of one branch where it, or the down row, is zero: what scales the one that isn't onto its partner.

    No function depends on it, so that it is bounded: another model, in which neither is zero, may get the same move.
    """
    into, out = (
        torch.where(pairs.eta[name] < least, 0.0, pairs.gamma[name] / pairs.eta[name].clamp(min=least))
        for name in (branch, "down")
    )
    share = torch.where(out == 0, into, out.sign() * out.abs().clamp(min=least) ** (-1 / power))
    known = ((into == 0) != (out == 0)) & ((share > 0) | (kind is Scale.signed))
    return torch.where(known, share.sign() * share.abs().clamp(1 / UNHEARD, UNHEARD), 1.0)
