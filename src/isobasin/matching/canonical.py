"""The canonical member of a block's orbit: two blocks that a group element connects have the same, up to rounding.

Everything is fixed by what the group can't change. A GL(n) pair `L R^T = S Σ T^T` becomes `L = S Σ^{1/2}`,
`R = T Σ^{1/2}`; a plane gets columns of equal norms; scales of gains and of a unit's branches likewise. The sign of a
column, or the phase of a complex one, makes `Σ x |x|²` positive. A latent gets gains of 1 and the basis in which what
writes it has orthogonal columns, the longest first. Heads and units come in the order of the norms of
their circuits, the largest first. What is free to shift is zero.

Where two of the numbers that decide are equal, or one of them vanishes, the choice is none of the orbit's: then any is
made, and named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isobasin.matching.factors import Factors, query_key_factors, rotary_factors, value_output_factors
from isobasin.matching.feedforward import branches, router_rows
from isobasin.matching.heads import circuit_squares
from isobasin.symmetries import attention, bilinear, feedforward, gains, latent, permutation, tables
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.bilinear import BilinearElement, column_squares
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, QueryKeyNorm
from isobasin.symmetries.latent import LatentElement
from isobasin.symmetries.weights import AttentionWeights


@dataclass
class Loose:
    """What rounding decides in a block.

    Attributes:
        eps: Relative size of what counts as rounding: that of the stored type.
        names: Of the choices that it decides, in the order in which they were made.
    """

    eps: float
    names: list[str] = field(default_factory=list[str])

    def check(self, name: str, undecided: Tensor) -> None:
        """Note a choice if it is undecided anywhere."""
        if name not in self.names and bool(undecided.any()):
            self.names.append(name)

    def order(self, name: str, sizes: Tensor) -> Tensor:
        """Indices that sort by size, the largest first."""
        found = sizes.sort(-1, descending=True)
        self.check(name, -found.values.diff(dim=-1) <= self.eps * found.values[..., :1])
        return found.indices

    def phase(self, *columns: Tensor) -> Tensor:
        """Numbers of size 1, one for each column, that make `Σ x |x|²` positive; `(..., rows, n)` to `(..., n)`."""
        odd = sum((x * x.abs().square()).sum(-2) for x in columns) + torch.zeros_like(columns[0][..., 0, :])
        size = sum(x.abs().pow(3).sum(-2) for x in columns)
        self.check("signs", odd.abs() < self.eps * size)
        return torch.where(odd == 0, torch.ones_like(odd), odd.conj().resolve_conj().sgn())


def head_sizes(group: AttentionGroup, weights: AttentionWeights) -> Tensor:
    """What heads are ordered by, `(..., g, s)`: the norms of both circuits, each relative to the block's largest."""
    norms = (circuit_squares(factors(group, weights)).clamp(min=0).sqrt() for factors in _PAIRS)
    tiny = torch.finfo(torch.float64).tiny
    return sum((x / x.amax((-2, -1), keepdim=True).clamp(min=tiny) for x in norms), start=torch.zeros(()))


_PAIRS: tuple[Callable[[AttentionGroup, AttentionWeights], Factors], ...] = (query_key_factors, value_output_factors)


def canonical_attention(
    group: AttentionGroup, weights: AttentionWeights, sizes: Tensor, loose: Loose
) -> AttentionElement:
    """The element that makes an attention block canonical.

    Args:
        group: Of the block.
        weights: Float64, without leading dimensions.
        sizes: `head_sizes`, or their sum over blocks whose heads permute together.
        loose: Takes the names of choices that rounding decides.
    """
    element = attention.identity(group, device=weights.key.device)
    if group.latent is not None:
        element = _with_latent(group, weights, element, loose)
    if group.permuted:
        outer = loose.order("head order", sizes.sum(-1))
        inner = permutation.take(loose.order("head order", sizes), outer)
        element = replace(element, outer=outer, inner=inner)
    ordered = attention.act(group, element, weights)
    value_output = _gauge(group.value_output, value_output_factors(group, ordered).tall(), loose)
    element = replace(element, value_output=value_output)
    queries = query_key_factors(group, ordered).tall()
    if group.norm is None:
        element = replace(element, query_key=_gauge(group.query_key, queries, loose))
    else:
        query_key, trades = _normed(group, queries, gains.unsigned(group, ordered), loose)
        element = _with_signs(group, weights, replace(element, query_key=query_key, trades=trades), loose)
    return _with_shifts(group, weights, element)


def _with_latent(
    group: AttentionGroup, weights: AttentionWeights, element: AttentionElement, loose: Loose
) -> AttentionElement:
    """The element that also gives latents their bases and gains, and then the rotary key its balance."""
    assert group.latent is not None
    assert element.latent is not None
    parts, found = weights.tensors(), element.latent.tensors()
    for name in group.latent.widths:
        rows = [parts[role] for role in (f"{name}_down", f"{name}_down_bias") if role in parts]
        down = _square(torch.cat([x.reshape(-1, x.shape[-1]) for x in rows]))
        _, sizes, basis = torch.linalg.svd(down, full_matrices=False)
        loose.check("rank", sizes <= loose.eps * sizes[:1])
        loose.check("singular values", -sizes.diff() <= loose.eps * sizes[:1])
        found[name] = basis.mT * loose.phase(down @ basis.mT)
        found[f"{name}_trades"] = 1 / parts[f"{name}_down_gain"]
    turned = latent.act(group.latent, LatentElement(**found), weights)
    balanced = _gauge(group.rotary, rotary_factors(group, turned).tall(), loose)
    return replace(element, latent=LatentElement(**{**found, "rotary": balanced.planes.squeeze(-2)}))


def _with_signs(
    group: AttentionGroup, weights: AttentionWeights, element: AttentionElement, loose: Loose
) -> AttentionElement:
    """The element that also makes gains positive, or with LayerNorm the inner product of queries' and keys'."""
    numbers = gains.deciding(group, attention.act(group, element, weights))
    for x in numbers:
        loose.check("gains", x == 0)
    query, key = (gains.signs_of(x) for x in numbers)
    return replace(element, query_signs=query, key_signs=key)


def _with_shifts(group: AttentionGroup, weights: AttentionWeights, element: AttentionElement) -> AttentionElement:
    """The element that also leaves nothing of what is free to shift."""
    moved = attention.act(group, element, weights)
    if group.key_shift and moved.key_bias is not None:
        element = replace(element, key_shift=-moved.key_bias[..., list(group.query_key.linear)])
    if group.value_shift and moved.value_bias is not None:
        element = replace(element, value_shift=-moved.value_bias)
    if group.table and moved.table is not None:
        element = replace(element, table_shift=-tables.means(group, moved.table))
    return element


def _gauge(group: BilinearGroup, pair: Factors, loose: Loose) -> BilinearElement:
    """The element that balances every head's pair."""
    none = pair.left.new_empty(*pair.left.shape[:-2], 0, 0)
    matrix = _balance(pair.left, pair.right, loose) if group.linear else none
    left, right = column_squares(pair.left_planes), column_squares(pair.right_planes)
    alive = (left > 0) & (right > 0)
    loose.check("rank", ~alive)
    scale = torch.where(alive, right / left, 1.0).pow(0.25)
    columns = pair.left_planes * scale.unsqueeze(-2), pair.right_planes / scale.unsqueeze(-2)
    return BilinearElement(matrix, scale * loose.phase(*columns))


def _balance(left: Tensor, right: Tensor, loose: Loose) -> Tensor:
    """U of the balanced gauge, `(..., n, n)`.

    With triangular factors `R_L R_R^T = S Σ T^T` of both sides, `U^T = R_R^T T Σ^{-1/2}`.
    """
    r_left, r_right = (torch.linalg.qr(_square(x), mode="r").R for x in (left, right))
    s, sigma, th = torch.linalg.svd(r_left @ r_right.mT)
    rounding = sigma.shape[-1] * torch.finfo(sigma.dtype).eps * r_left.norm(dim=(-2, -1)) * r_right.norm(dim=(-2, -1))
    dead = sigma <= rounding.unsqueeze(-1)
    loose.check("rank", dead | (sigma <= loose.eps * sigma[..., :1]))
    loose.check("singular values", -sigma.diff(dim=-1) <= loose.eps * sigma[..., :1])
    root = torch.where(dead, 0.0, sigma.rsqrt()).unsqueeze(-2)
    to_left, to_right = r_right.mT @ th.mT * root, r_left.mT @ s * root
    for head in dead.any(-1).nonzero().tolist():
        rank = int((~dead[tuple(head)]).sum())
        to_left[tuple(head)] = _completed(to_left[tuple(head)][:, :rank], to_right[tuple(head)][:, :rank])
    columns = left @ to_left, torch.linalg.solve(to_left.mT, right, left=False)
    return (to_left * loose.phase(*columns).unsqueeze(-2)).mT


def _square(x: Tensor) -> Tensor:
    """At least as many rows as columns."""
    return torch.nn.functional.pad(x, (0, 0, 0, max(0, x.shape[-1] - x.shape[-2])))


def _completed(left: Tensor, right: Tensor) -> Tensor:
    """An invertible `[E, C]`, the first columns of whose inverse transpose are F, from `E^T F = 1`, both `(n, r)`.

    C spans what F doesn't see, in the basis that is best conditioned.
    """
    rank = left.shape[-1]
    outside = [torch.linalg.svd(x, full_matrices=True).U[:, rank:] for x in (left, right)]
    _, size, vh = torch.linalg.svd(outside[0].mT @ outside[1])
    return torch.cat([left, outside[1] @ vh.mT * size.rsqrt()], -1)


def _normed(
    group: AttentionGroup, pair: Factors, weights: AttentionWeights, loose: Loose
) -> tuple[BilinearElement, Tensor]:
    """Turns, permutations and signs of every head, and trades, where queries and keys are normalised."""
    assert weights.query_gain is not None
    assert weights.key_gain is not None
    qk, given = group.query_key, (weights.query_gain, weights.key_gain.unsqueeze(-2))
    plane_gains = [bilinear.plane_part(qk, x) for x in given] if qk.planes else [pair.left_planes[:1] for _ in given]
    linear_gains = [bilinear.linear_part(qk, x) for x in given]

    def strengths(columns: tuple[Tensor, Tensor], own: list[Tensor]) -> Tensor:
        """What no sign, turn or trade changes of every feature, `(holders, n)`: those with common gains together."""
        squares = column_squares(columns[0]) * column_squares(columns[1])
        shared = squares.sum(0, keepdim=True) if group.trades[0] == 1 else squares
        return shared * column_squares(own[0]) * column_squares(own[1])

    real = strengths((pair.left_planes.real, pair.right_planes.real), [x.real for x in plane_gains])
    imaginary = strengths((pair.left_planes.imag, pair.right_planes.imag), [x.imag for x in plane_gains])
    loose.check("turns", (imaginary - real).abs() <= loose.eps * imaginary.maximum(real))
    turns = torch.where(imaginary > real, torch.tensor(1j, device=real.device), 1.0).to(pair.left_planes)
    order = loose.order("features", strengths((pair.left, pair.right), linear_gains))
    moves = torch.eye(len(qk.linear)).to(pair.left)[order]
    if group.norm is QueryKeyNorm.centred:
        parts = [x for y in (pair.left_planes, pair.right_planes) for x in (y.real, y.imag)] + [pair.left, pair.right]
        signs = flips = loose.phase(*(x.flatten(-2).unsqueeze(-1) for x in parts))
    else:
        planes = (x * turns.unsqueeze(-2) for x in (pair.left_planes, pair.right_planes))
        signs = loose.phase(*(part for x in planes for part in (x.real, x.imag)))
        flips = loose.phase(pair.left @ moves.mT, pair.right @ moves.mT)
    element = BilinearElement(moves * flips.unsqueeze(-1), turns * signs)
    return element, _trades(group, element, given, loose)


def _trades(group: AttentionGroup, element: BilinearElement, given: tuple[Tensor, Tensor], loose: Loose) -> Tensor:
    """The trades that give the gains of queries and keys equal norms, and those of queries a positive sum of cubes."""
    qk = group.query_key
    carried = [gains.carried(group, gains.holders(group, element), x) for x in given]
    parts: list[Tensor] = []
    if qk.planes:
        planes = [bilinear.plane_part(qk, x) for x in carried]
        parts.append(_trade([torch.cat([x.real, x.imag], -2) for x in planes], loose))
    parts.append(_trade([bilinear.linear_part(qk, x) for x in carried], loose))
    return torch.cat(parts, -1)


def _trade(given: list[Tensor], loose: Loose) -> Tensor:
    """One trade for each column of both gains."""
    squares = [column_squares(x) for x in given]
    alive = (squares[0] > 0) & (squares[1] > 0)
    loose.check("gains", ~alive)
    return loose.phase(given[0]) * torch.where(alive, squares[1] / squares[0], 1.0).pow(0.25)


def canonical_feedforward(group: FeedForwardGroup, weights: FeedForwardWeights, loose: Loose) -> FeedForwardElement:
    """The element that makes a feed-forward block canonical.

    The branches of a unit that may be scaled, and `down`, get one norm, and each branch that may change its sign a
    positive sum of cubes; units are ordered by the product of the norms of their branches, and experts by its sum over
    their units. The mean of a router's rows is zero where it may be shifted.

    Args:
        group: Of the block.
        weights: Float64, without leading dimensions.
        loose: Takes the names of choices that rounding decides.
    """
    rows = branches(weights)
    powers: dict[str, int] = dict(zip(("up", "gate"), group.powers, strict=True))
    kinds: dict[str, Scale] = {"up": group.up, "gate": group.gate or Scale.none}
    norms = {name: branch.norm(dim=-1) for name, branch in rows.items()}
    scaled = [name for name, kind in kinds.items() if kind.dimension]
    alive = torch.stack([norms[name] for name in (*scaled, "down")]).amin(0) > 0
    loose.check("scales", ~alive & bool(scaled))

    logs = {name: torch.where(alive, norm, 1.0).log() for name, norm in norms.items()}
    level = sum((powers[name] * logs[name] for name in scaled), start=logs["down"])
    level = level / (1 + sum(powers[name] for name in scaled))
    scales = {name: torch.ones_like(norms["down"]) for name in kinds}
    scales |= {name: (level - logs[name]).exp() for name in scaled}
    for name, kind in kinds.items():
        if kind in (Scale.sign, Scale.signed):
            scales[name] = scales[name] * loose.phase(rows[name].mT)

    size = norms["down"]
    for name in kinds:
        size = size * norms[name] ** powers[name] if name in rows else size
    order = loose.order("unit order", size)
    found = FeedForwardElement(order, *(permutation.take(scales[name], order) for name in kinds))
    return found if group.experts is None else _canonical_experts(group, weights, found, size.sum(-1), loose)


def _canonical_experts(
    group: FeedForwardGroup, weights: FeedForwardWeights, found: FeedForwardElement, sizes: Tensor, loose: Loose
) -> FeedForwardElement:
    """The same with experts in the order of their sizes, in their groups, and router's rows whose mean is zero."""
    sizes = sizes.unflatten(-1, (group.expert_groups, -1))
    groups = loose.order("expert order", sizes.sum(-1))
    inner = permutation.take(loose.order("expert order", sizes), groups)
    experts = feedforward.grouped(groups, inner)
    parts = {name: permutation.take(getattr(found, name), experts) for name in ("permutation", "up", "gate")}
    return FeedForwardElement(**parts, experts=experts, shift=-router_rows(weights).mean(-2)[..., : group.shift])
