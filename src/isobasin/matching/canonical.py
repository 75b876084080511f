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

import torch
from torch import Tensor

from isobasin.matching.feedforward import branches
from isobasin.matching.heads import circuit_squares
from isobasin.matching.sides import all_sides
from isobasin.symmetries import permutation
from isobasin.symmetries.attention import AttentionElement
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, FeedForwardWeights, Scale
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.loose import Loose as Loose
from isobasin.symmetries.weights import AXES, AttentionWeights

_EXPERTS = "expert order"


def head_sizes(group: AttentionGroup, weights: AttentionWeights) -> Tensor:
    """What heads are ordered by, `(..., g, s)`: the norms of both circuits, each relative to the block's largest."""
    norms = (circuit_squares(circuit).clamp(min=0).sqrt() for circuit in all_sides(group, weights).values())
    tiny = torch.finfo(torch.float64).tiny
    return sum((x / x.amax((-2, -1), keepdim=True).clamp(min=tiny) for x in norms), start=torch.zeros(()))


def canonical_attention(
    group: AttentionGroup, weights: AttentionWeights, sizes: Tensor, loose: Loose
) -> AttentionElement:
    """The element that makes an attention block canonical.

    Args:
        group: Of the block.
        weights: Float64, without leading dimensions.
        sizes: `head_sizes`, or their sum over blocks whose heads permute together.
        loose: Takes the choices that rounding decides, and what they move.
    """
    heads, *factors = group.factors
    element = group.identity(device=weights.key.device)
    if group.permuted:
        outer = loose.order("head order", sizes.sum(-1))
        element = element.having({"outer": outer, "inner": permutation.take(loose.order("head order", sizes), outer)})
        loose.decide(loose.choices, weights.tensors().keys() & AXES.keys())
    moved = heads.act(element.tensors(), weights.tensors())
    for factor in factors:
        own, before = Loose(loose.eps), moved
        found = factor.canonical(before, own)
        moved, element = factor.act(found, before), element.having(found)
        # What a factor doesn't move it passes on.
        loose.decide(own.choices, (role for role, x in moved.items() if x is not before[role]))
    return element


def canonical_feedforward(group: FeedForwardGroup, weights: FeedForwardWeights, loose: Loose) -> FeedForwardElement:
    """The element that makes a feed-forward block canonical.

    The branches of a unit that may be scaled, and `down`, get one norm, and each branch that may change its sign a
    positive sum of cubes; units are ordered by the product of the norms of their branches, and experts by its sum over
    their units. The mean of a router's rows is zero where it may be shifted.

    Args:
        group: Of the block.
        weights: Float64, without leading dimensions.
        loose: Takes the choices that rounding decides, and what they move.
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
        if kind.signs:
            scales[name] = scales[name] * loose.phase(rows[name].mT)

    size = norms["down"]
    for name in kinds:
        size = size * norms[name] ** powers[name] if name in rows else size
    order = loose.order("unit order", size)
    found = {name: permutation.take(scales[name], order) for name in kinds} | {"permutation": order}
    loose.decide(loose.choices, weights.tensors().keys() & AXES.keys())
    experts = None if group.experts is None else _expert_order(group, size.sum(-1), loose)
    if experts is not None:
        loose.decide(loose.choices.keys() & {_EXPERTS}, weights.tensors())
        found = {name: permutation.take(part, experts) for name, part in found.items()} | {"experts": experts}
    # The mean of a router's rows is the same in any order.
    shift = group.factors[1].canonical(weights.tensors(), loose)
    return group.identity((), order.device).having({**found, **shift})


def _expert_order(group: FeedForwardGroup, sizes: Tensor, loose: Loose) -> Tensor:
    """Experts in the order of their sizes, in their groups."""
    sizes = sizes.unflatten(-1, (group.expert_groups, -1))
    groups = loose.order(_EXPERTS, sizes.sum(-1))
    return permutation.nested(groups, permutation.take(loose.order(_EXPERTS, sizes), groups))
