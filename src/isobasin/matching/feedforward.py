"""From the weights of two feed-forward blocks to the group element that brings one onto the other.

Units are paired, and scaled, by `isobasin.matching.units`.

Of experts, the best move of every pair is found first; its distance, and that of their rows of the router, is the cost
of the pair, so that the assignment of experts gives the joint optimum. The best shift of a router is the difference of
both models' mean rows, whatever the order, so that rows are compared without their means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.matching.heads import assign
from isobasin.matching.inputs import Moments, weighted
from isobasin.matching.products import squares
from isobasin.matching.units import best_scales, least_distance, partners
from isobasin.symmetries.feedforward import FeedForwardElement, FeedForwardGroup, FeedForwardWeights
from isobasin.symmetries.permutation import nested

# Above so many pairs of units, over all pairs of experts, experts are compared by probes instead.
_NESTED = 2**24
_PROBES = 64


@dataclass(frozen=True)
class FeedForwardMatch:
    """What matching found for one block.

    Attributes:
        element: Brings the model onto the reference.
        moved: The model's weights after it.
        rough: Whether another one may be a little nearer.
    """

    element: FeedForwardElement
    moved: FeedForwardWeights
    rough: bool = False


def match_feedforward(
    group: FeedForwardGroup,
    reference: FeedForwardWeights,
    model: FeedForwardWeights,
    moments: Moments | None = None,
    *,
    rough: bool = False,
) -> FeedForwardMatch:
    """Find the element of `group` that brings `model` nearest to `reference`, in all weights and biases.

    The global minimum over permutations and scales; where both branches of a gated block have continuous scales, those
    of a pair of units are found by coordinate descent from equal norms, which may end in a local minimum. Of a unit
    whose weights into or out of it are all zero the others say the scale, within bounds. Of many large experts only
    their order may be another than the best, see `_expert_costs`.

    Args:
        group: The block's group.
        reference: Float64 weights without leading dimensions.
        model: Weights of the same shapes.
        moments: Of the reference's inputs, where distances are to be as they see them (`matching.inputs`); not for
            experts.
        rough: Of many units without plain partners, take an assignment that is only nearly the best, in half the time.
    """
    if group.experts is not None:
        element = _match_experts(group, reference, model)
        return FeedForwardMatch(element, group.act(element, model))
    a, b = (branches(w if moments is None else weighted(w, moments)) for w in (reference, model))
    order, roughly = partners(group, a, b, rough=rough)
    up, gate = best_scales(group, a, b, order)
    element = group.identity((), order.device).having({"permutation": order, "up": up, "gate": gate})
    return FeedForwardMatch(element, group.act(element, model), roughly)


def distance(a: FeedForwardWeights, b: FeedForwardWeights) -> float:
    """Frobenius distance of all weights and biases."""
    return math.sqrt(math.fsum(squares(t, getattr(b, name)) for name, t in a.tensors().items()))


def unit_sizes(group: FeedForwardGroup, weights: FeedForwardWeights) -> Tensor:
    """What no scale changes of every unit, in ascending order: `||up||^m ||gate||^n ||down||`, of all experts at once.

    Blocks in one orbit have equal sizes, and comparing them costs next to nothing.
    """
    m, n = group.powers
    norms = {name: branch.norm(dim=-1) for name, branch in branches(weights).items()}
    sizes = norms["up"] ** m * norms.get("gate", torch.ones_like(norms["up"])) ** n * norms["down"]
    return sizes.flatten().sort().values


def branches(weights: FeedForwardWeights) -> dict[str, Tensor]:
    """What moves with a unit: its rows, each with its bias as one more column."""
    parts = weights.tensors()
    biases = {name: parts.get(f"{name}_bias") for name in ("up", "gate")}
    branches = {name: parts[name] for name in ("up", "gate", "down") if name in parts}
    return {
        name: rows if (bias := biases.get(name)) is None else torch.cat([rows, bias.unsqueeze(-1)], dim=-1)
        for name, rows in branches.items()
    }


def _match_experts(
    group: FeedForwardGroup, reference: FeedForwardWeights, model: FeedForwardWeights
) -> FeedForwardElement:
    """Which expert is which, the units of each, and the shift of the router."""
    costs = _router_costs(group, reference, model) + _expert_costs(group, reference, model)
    slots = group.expert_groups, (group.experts or 0) // group.expert_groups
    experts = nested(*assign(costs.unflatten(1, slots).unflatten(0, slots).transpose(1, 2)))
    elements = [
        match_feedforward(group.expert, reference.expert(i), model.expert(j)).element
        for i, j in enumerate(experts.tolist())
    ]
    units = {name: torch.stack([x.parts[name] for x in elements]) for name in ("permutation", "up", "gate")}
    # Of a group without shift the narrowed vector is empty.
    shift = (router_rows(reference).mean(0) - router_rows(model).mean(0))[: group.shift]
    return group.identity((), costs.device).having({**units, "experts": experts, "shift": shift})


def router_rows(weights: FeedForwardWeights) -> Tensor:
    """An expert's row of the router with its bias as one more column, `(..., e, d)`."""
    assert weights.router is not None
    bias = weights.router_bias
    return weights.router if bias is None else torch.cat([weights.router, bias.unsqueeze(-1)], dim=-1)


def _router_costs(group: FeedForwardGroup, reference: FeedForwardWeights, model: FeedForwardWeights) -> Tensor:
    """Squared distances of what belongs to experts outside of them, up to the router's shift, `(e, e)`."""
    rows = [router_rows(weights) for weights in (reference, model)]
    if group.shift:
        rows = [x - x.mean(0) for x in rows]
    for name in ("correction", "down_bias"):
        parts = [getattr(weights, name) for weights in (reference, model)]
        if parts[0] is not None and parts[1] is not None:
            rows = [torch.cat([x, y.reshape(len(x), -1)], -1) for x, y in zip(rows, parts, strict=True)]
    return _squares(*rows)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """`||x_i - y_j||²` of all pairs of rows, from differences: squares that cancel would be rounding."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _expert_costs(group: FeedForwardGroup, reference: FeedForwardWeights, model: FeedForwardWeights) -> Tensor:
    """How far apart the units of every pair of experts are, `(e, e)`.

    The least squared distance over all moves of each pair, which makes the assignment of experts exact, takes 2 to 3 µs
    for every pair of units of every pair of experts: 50 s for 8 experts of 512 units. Where that is too long, experts
    are compared by what no move changes: their outputs at random inputs, p for the branch up and q for gate, with
    powers for activations,

        F(p, q) = Σ_i (p·up_i)^m (q·gate_i)^n down_i,

    whose mean squared distance over all p and q is that of the tensors `Σ_i up_i^m ⊗ gate_i^n ⊗ down_i`. It is scaled
    to the size of the weights themselves. Planted orders of experts are found exactly by either; for models trained
    apart the second is a proxy, and units are then matched exactly inside the pairs that it chose.
    """
    count = group.experts or 0
    if (count * group.units) ** 2 > _NESTED:
        return _probed_costs(group, reference, model)
    ours, theirs = ([branches(side.expert(i)) for i in range(count)] for side in (reference, model))
    costs = [[least_distance(group.expert, one, other) for other in theirs] for one in ours]
    return torch.tensor(costs, dtype=torch.float64, device=reference.up.device)


def _probed_costs(group: FeedForwardGroup, reference: FeedForwardWeights, model: FeedForwardWeights) -> Tensor:
    """Squared distances of experts' outputs at probes, as a share of their size, times that of the weights."""
    m, n = group.powers
    rows = [branches(weights) for weights in (reference, model)]
    generator = torch.Generator().manual_seed(0)
    probes = {
        name: torch.randn(_PROBES, part.shape[-1], generator=generator, dtype=torch.float64).to(part.device)
        for name, part in rows[0].items()
        if name != "down"
    }

    def outputs(parts: dict[str, Tensor]) -> Tensor:
        units = (probes["up"] @ parts["up"].mT) ** m
        units = units * (probes["gate"] @ parts["gate"].mT) ** n if "gate" in parts else units
        return (units @ parts["down"]).flatten(1)

    found = [outputs(parts) for parts in rows]
    size = sum(map(squares, rows[0].values()))
    return _squares(*found) * (size / float(found[0].square().sum()))
