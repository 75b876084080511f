"""What each part of matching is worth: the paper's ablations, and the wrong group where rotary positions broke it.

Everything is measured on one open pair of checkpoints. Barriers are those of the line from A to B after a move.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import Alignment
from isobasin.choices import HeadCost, Method
from isobasin.errors import IsobasinError
from isobasin.lines.ends import OpenPair
from isobasin.matching import heads as stage_one
from isobasin.matching.attention import align_heads
from isobasin.model import Model, read_blocks
from isobasin.records.curves import NAIVE, chosen_rank
from isobasin.symmetries import attention
from isobasin.symmetries.groups import BilinearGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.verbs.settings import Matching

ALL = 24
"""Up to so many head permutations are all tried; of more, some are drawn."""

Heads = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""A head permutation as `AttentionElement` has it: outer, and inner for every group."""


def stage_1(pair: OpenPair, drawn: int = 23, seed: int = 0, layer: int = 0) -> dict[str, Any]:
    """Where the chosen head permutation ranks among all of one layer, or among drawn ones and itself.

    Every permutation is followed by stage 2; the other layers are aligned as always. With barriers L,
    `L̂ = 100 (L_chosen - L_best) / (L_naive - L_best)`: 0 is the best of them, 100 as bad as not moving B.

    Args:
        pair: The models.
        drawn: How many permutations are drawn where there are more than 24.
        seed: Of that draw.
        layer: Whose heads are permuted.

    Returns:
        "layer", "rank" (1 is the best; equal barriers share it), "of", "l_hat", "naive" (a curve), and "permutations"
        in order of rank, each with its "heads", stage 1's "cost", whether it was "chosen", and its curve.
    """
    base = pair.match(pair.losses.how.matching())
    block = pair.b.specification.attention[layer]
    weights = read_blocks(pair.a, [layer]), read_blocks(pair.b, [layer])
    table = stage_one.head_costs(block.group, *weights)[0]
    chosen = _heads_of(base, layer)
    rows: list[dict[str, Any]] = []
    for heads in _permutations(block.group.kv_heads, block.group.queries_per_kv, chosen, drawn, seed):
        moved = _with_heads(base, layer, heads, weights, Matching().limit(pair.b.dtype()))
        cost = _cost(table, heads)
        rows.append({"heads": _flat(heads), "cost": cost, "chosen": heads == chosen, **pair.curve(moved)})
    naive = pair.curve(None)
    rows.sort(key=lambda row: row["barrier"])
    rank = chosen_rank(rows)
    best, found = rows[0]["barrier"], rows[rank - 1]["barrier"]
    room = naive["barrier"] - best
    l_hat = 100 * (found - best) / room if room > 0 else None
    return {"layer": layer, "rank": rank, "of": len(rows), "l_hat": l_hat, "naive": naive, "permutations": rows}


def stage_2(pair: OpenPair) -> dict[str, Any]:
    """Barriers with stage 2 left out, with its start alone, by gradient descent, and by Gauss-Newton.

    Returns:
        "methods": by name, from "none" on, a curve with its "percent" of the naive barrier and the weights' "distance".
    """
    found: dict[str, dict[str, Any]] = {NAIVE: pair.curve(None)}
    for method in (Method.heads, Method.orthogonal, Method.paper, Method.gauss_newton):
        moved = pair.match(pair.losses.how.matching(method))
        found[NAIVE].setdefault("distance", moved.distance()["before"])
        found[method.value] = {**pair.curve(moved), "distance": moved.distance()["after"]}
    return {"methods": with_percent(found)}


def head_costs(pair: OpenPair) -> dict[str, Any]:
    """Barriers and head permutations by every cost that stage 1 knows; stage 2 follows as always.

    Returns:
        "costs": by name, and "none", a curve with its "percent" of the naive barrier, the "heads" of every layer, and
        the weights' "distance".
    """
    found: dict[str, dict[str, Any]] = {NAIVE: pair.curve(None)}
    for cost in HeadCost:
        moved = pair.match(replace(pair.losses.how.matching(), head_cost=cost))
        heads = [_flat(_heads_of(moved, index)) for index in range(len(moved.layers))]
        same = next((row for row in found.values() if row.get("heads") == heads), None)
        curve = pair.curve(moved) if same is None else same
        found[cost.value] = {**curve, "heads": heads, "distance": moved.distance()["after"]}
    return {"costs": with_percent(found)}


def symmetry_breaking(pair: OpenPair, offsets: Sequence[int]) -> dict[str, Any]:
    """A rotary pair aligned by GL(d_h), which rotary positions broke, against H(d_h), which they left.

    Under rotary positions the scores of tokens at distance n are `x Q R_n K^T y^T`. A map of GL leaves `Q K^T` as it is
    and changes the forms `Q R_n K^T` at n ≠ 0; one of H leaves all of them (arXiv 2606.17830, Theorem 4.2).

    Args:
        pair: The models; they have rotary positions.
        offsets: The distances n.

    Returns:
        "naive" (a curve) and "groups": for "H" and "GL", "change" by offset (`||Q' R_n K'^T - Q R_n K^T||` over
        `||Q R_n K^T||`, Frobenius, all heads of all layers together), the "loss" of B after the move, "loss_before",
        and its curve.

    Raises:
        IsobasinError: The models have no rotary positions.
    """
    if not any(block.group.query_key.planes for block in pair.b.specification.attention):
        raise IsobasinError(f"{pair.b.name}: has no rotary positions, so that GL is the right group for it")
    naive = pair.curve(None)
    groups: dict[str, Any] = {}
    for name, wrong in (("H", False), ("GL", True)):
        one = _in_wrong_group(pair) if wrong else pair
        moved = one.match(pair.losses.how.matching())
        curve = one.curve(moved)
        change = {str(offset): _change(pair.b, moved, offset) for offset in offsets}
        before = naive["losses"][-1]
        groups[name] = {"change": change, "loss": curve["losses"][-1], "loss_before": before, **curve}
    return {"naive": naive, "groups": groups}


def with_percent(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every curve with its share of the naive barrier; None where there is no such barrier."""
    naive = found[NAIVE]["barrier"]
    return {
        name: {**row, "percent": 100 * row["barrier"] / naive if naive > 0 else None} for name, row in found.items()
    }


def _in_wrong_group(pair: OpenPair) -> OpenPair:
    """The same pair as if positions weren't rotary: all of GL(d_h) on Q-K. Its moves change what B computes."""

    def wrong(model: Model) -> Model:
        blocks = tuple(
            replace(block, group=replace(block.group, query_key=BilinearGroup(block.group.query_key.features)))
            for block in model.specification.attention
        )
        return replace(model, specification=replace(model.specification, attention=blocks))

    return replace(pair, a=wrong(pair.a), b=wrong(pair.b), exact=False)


def _heads_of(alignment: Alignment, layer: int) -> Heads:
    element = alignment.layers[layer].element
    return tuple(element.outer.tolist()), tuple(map(tuple, element.inner.tolist()))


def _flat(heads: Heads) -> list[int]:
    """Which of B's query heads each of A's is."""
    outer, inner = heads
    queries = len(inner[0])
    return [group * queries + slot for group, slots in zip(outer, inner, strict=True) for slot in slots]


def _permutations(groups: int, queries: int, chosen: Heads, drawn: int, seed: int) -> Iterator[Heads]:
    """All head permutations if they are few; else the chosen one and others that are drawn, all different."""
    if math.factorial(groups) * math.factorial(queries) ** groups <= ALL:
        inner = list(itertools.permutations(range(queries)))
        yield from itertools.product(itertools.permutations(range(groups)), itertools.product(inner, repeat=groups))
        return
    draw, seen = random.Random(seed), {chosen}
    yield chosen
    while len(seen) <= drawn:
        slots = tuple(tuple(draw.sample(range(queries), queries)) for _ in range(groups))
        heads = tuple(draw.sample(range(groups), groups)), slots
        if heads not in seen:
            seen.add(heads)
            yield heads


def _with_heads(
    base: Alignment, layer: int, heads: Heads, weights: tuple[AttentionWeights, AttentionWeights], limit: float
) -> Alignment:
    """The alignment with another head permutation in one layer, and stage 2 after it."""
    outer, inner = torch.tensor([heads[0]]), torch.tensor([heads[1]])
    old = base.layers[layer]
    found = replace(old, element=align_heads(old.group, *weights, outer, inner, max_condition=limit).element[0])
    return replace(base, moves=tuple(found if move is old else move for move in base.moves))


def _cost(table: Tensor, heads: Heads) -> float:
    """Stage 1's total cost of a head permutation; `table` is `(g, g', s, s')`."""
    outer, inner = heads
    return float(sum(table[i, j, s, t] for i, j in enumerate(outer) for s, t in enumerate(inner[i])))


def _change(model: Model, alignment: Alignment, offset: int) -> float:
    """How much a move changes the forms `Q R_n K^T` of all heads together, relative."""
    base = _rotary_base(model.checkpoint.config)
    squares = torch.zeros(2, dtype=torch.float64)
    for index, (block, layer) in enumerate(zip(model.specification.attention, alignment.layers, strict=True)):
        weights = read_blocks(model, [index])[0]
        before = attention.permute(weights, layer.element.outer, layer.element.inner)
        after = layer.group.act(layer.element, weights)
        planes = block.group.query_key.planes
        sides = [(_rotated(w.query, planes, base, offset), w.key.unsqueeze(-3)) for w in (before, after)]
        squares[0] += _form_square([sides[1][0], -sides[0][0]], [sides[1][1], sides[0][1]])
        squares[1] += _form_square([sides[0][0]], [sides[0][1]])
    return float((squares[0] / squares[1]).sqrt())


def _form_square(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """`||Σ_k L_k R_k^T||²` over all heads, by triangular factors: Gram matrices would lose small differences."""
    shape = left[0].shape
    factors = [torch.linalg.qr(torch.cat([x.expand(shape) for x in side], -1), mode="r").R for side in (left, right)]
    return (factors[0] @ factors[1].mT).square().sum()


def _rotated(query: Tensor, planes: Sequence[tuple[int, int]], base: float, offset: int) -> Tensor:
    """Queries turned by n positions; plane j of p turns by `n base^{-j/p}`."""
    turned = query.clone()
    for j, (x, y) in enumerate(planes):
        angle = offset * base ** (-j / len(planes))
        cos, sin = math.cos(angle), math.sin(angle)
        turned[..., x] = cos * query[..., x] - sin * query[..., y]
        turned[..., y] = sin * query[..., x] + cos * query[..., y]
    return turned


def _rotary_base(config: dict[str, Any]) -> float:
    """θ of the rotary frequencies, as configurations of different ages name it."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10_000)
