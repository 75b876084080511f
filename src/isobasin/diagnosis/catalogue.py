"""Every known defect of a block, from the block's own data: roles, layouts, planes, heads and normalisations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.architectures.blocks import AttentionBlock, Block
from isobasin.architectures.projection import Projection
from isobasin.diagnosis import orders
from isobasin.diagnosis.atoms import Atom, folded, listed, lost, ordered, regrouped, reorder, scaled, transposed
from isobasin.diagnosis.findings import Defect
from isobasin.diagnosis.orders import Rows


@dataclass(frozen=True)
class Reading:
    """The normalisation that some roles of a block read.

    Attributes:
        name: What it is called.
        gain: Its gain as a factor.
        bias: Its bias, or None.
        roles: What reads it.
    """

    name: str
    gain: Tensor
    bias: Tensor | None
    roles: tuple[str, ...]


def defects(block: Block, norms: Sequence[Reading]) -> list[Atom]:
    """All known defects of one block, each once; what is simpler comes first."""
    found = [*_orders(block), *_transposed(block), *_scales(block), *_lost(block)]
    for norm in norms:
        for out in (False, True):
            for shifts in (False, True) if norm.bias is not None else (False,):
                found.append(folded(norm.gain, norm.name, norm.roles, out=out, shifts=shifts))
    return list({atom.key: atom for atom in found}.values())


def _orders(block: Block) -> Iterator[Atom]:
    """Rows, features and heads in other orders."""
    if isinstance(block, AttentionBlock):
        yield from _rotary(block)
        yield from _heads(block)
    for roles in _together(block):
        rows, own = orders.reading({role: block.projections[role] for role in roles})
        counts = [one.count for one in rows]
        for words, sigma in orders.fused(rows, own):
            named = f"{words}, not {_own(rows, own)}"
            yield from _kinds(
                block, Defect.fused_order, named, "split the fused tensor as it was fused", sigma, roles, counts
            )
    for role, projection in block.projections.items():
        rows = Rows.of(role, projection)
        for words, sigma in orders.inside_out(rows):
            text = f"rows of {listed([role])} {words}"
            yield from _kinds(
                block, Defect.feature_order, text, "reshape to (heads, features, …)", sigma, [role], [rows.count]
            )


def _own(rows: Sequence[Rows], own: Tensor) -> str:
    """The order in which the model reads rows, in words."""
    return next((w.removeprefix("rows lie ") for w, o in orders.named(rows) if torch.equal(o, own)), "as it is read")


def _kinds(
    block: Block, defect: Defect, words: str, fix: str, sigma: Tensor, roles: Sequence[str], counts: Sequence[int]
) -> Iterator[Atom]:
    """Weights and biases in another order, or one of the two."""
    if bool((sigma == torch.arange(len(sigma))).all()):
        return
    biased = [role for role in roles if f"{role}_bias" in _biases(block)]
    both = ("", "_bias") if len(biased) == len(roles) else ("",)
    yield reorder(defect, words, fix, sigma, roles, counts, both)
    if len(both) > 1:
        yield reorder(defect, f"{words}, and biases are not", fix, sigma, roles, counts, ("",))
        yield reorder(defect, f"{words}, of the biases alone", fix, sigma, roles, counts, ("_bias",))


def _biases(block: Block) -> list[str]:
    """Biases that have the rows of their projection: not those into the stream."""
    return [f"{role}_bias" for role, p in block.projections.items() if p.bias is not None and p not in block.writers]


def _rotary(block: AttentionBlock) -> Iterator[Atom]:
    """Half and interleaved order of what rotates, of queries, keys or both."""
    planes = block.group.rotary.planes
    if not planes:
        return
    pair = ["query", "key"] if block.group.latent is None else ["rotary_query", "rotary_key"]
    rows = {role: Rows.of(role, block.projections[role]) for role in pair}
    features = block.group.rotary.features
    for heads in dict.fromkeys(one.heads for one in rows.values()):
        for words, fix, sigma in orders.rotary(features, planes, heads):
            both = [pair] if heads == rows[pair[0]].heads else []
            for roles in (*both, *([role] for role in pair if rows[role].heads == heads)):
                whole = torch.arange(0)
                for role in roles:
                    whole = torch.cat([whole, len(whole) + orders.every_head(sigma, rows[role].heads)])
                text = f"features of {listed(roles)} lie {words}"
                yield from _kinds(block, Defect.rotary_order, text, fix, whole, roles, [rows[r].count for r in roles])
    yield from _miscounted(block, rows, pair)


def _miscounted(block: AttentionBlock, rows: Mapping[str, Rows], pair: Sequence[str]) -> Iterator[Atom]:
    """The same of one role, with the other's number of heads."""
    for role, heads in zip(pair, [rows[role].heads for role in reversed(pair)], strict=True):
        features, over = divmod(rows[role].count, heads)
        if heads != rows[role].heads and not over and features % 2 == 0 and len(block.group.rotary.linear) == 0:
            planes = tuple((j, j + features // 2) for j in range(features // 2))
            for words, fix, sigma in orders.rotary(features, planes, heads):
                text = f"features of {listed([role])} lie {words}, as if there were {heads} heads"
                whole = orders.every_head(sigma, heads)
                yield from _kinds(block, Defect.rotary_order, text, fix, whole, [role], [len(whole)])


def _heads(block: AttentionBlock) -> Iterator[Atom]:
    """Heads in another order: query heads that go round the key/value heads, or any."""
    group = block.group
    ids = torch.arange(group.heads)
    named: dict[str, Tensor] = {}
    if group.queries_per_kv > 1 and group.kv_heads > 1:
        named["interleaved over the key/value heads, not in blocks"] = ids.reshape(group.kv_heads, -1).T.flatten()
        named["in blocks of key/value heads once too often"] = ids.reshape(group.queries_per_kv, -1).T.flatten()
    keys = (["key", "value"], ["key"], ["value"]) if group.kv_heads > 1 else ()
    queries = (["query", "output"], ["query"], ["output"]) if group.heads > 1 else ()
    for roles in keys:
        yield ordered(_with_biases(block, roles), roles, group.kv_heads, {}, "key/value")
    for roles in queries:
        yield ordered(_with_biases(block, roles), roles, group.heads, named, "query")
    together = (
        (["key", "value"], group.kv_heads, "query", "key/value"),
        (["query", "output"], group.heads, "key", "query"),
    )
    for roles, heads, partner, whose in together if group.kv_heads > 1 else ():
        yield regrouped(_with_biases(block, roles), roles, heads, partner, group.kv_heads, whose)


def _with_biases(block: Block, roles: Sequence[str]) -> list[str]:
    """Roles and those of their biases that have the same rows."""
    return [*roles, *(f"{role}_bias" for role in roles if f"{role}_bias" in _biases(block))]


def _together(block: Block) -> Iterator[list[str]]:
    """Roles that read the same and that files fuse: queries, keys and values; gate and up, of every expert."""
    projections = block.projections
    if isinstance(block, AttentionBlock):
        apart = {role: (_width(projections[role]), role in block.group.inside) for role in ("query", "key", "value")}
        for kind in dict.fromkeys(apart.values()):
            roles = [role for role, own in apart.items() if own == kind]
            if len(roles) > 1:
                yield roles
        return
    for role in projections:
        gate = role.replace("up", "gate")
        if role.startswith("up") and gate in projections:
            yield [gate, role]


def _width(projection: Projection) -> int:
    return dict(projection.layout.sizes)["width"]


def _transposed(block: Block) -> Iterator[Atom]:
    """Every stored matrix, with all that lies in it."""
    stored: dict[str, list[str]] = {}
    for role, projection in block.projections.items():
        if len(projection.layout.shape()) == 2:
            stored.setdefault(projection.weight, []).append(role)
    return map(transposed, stored.values())


def _scales(block: Block) -> Iterator[Atom]:
    """Every projection, and its bias, times a number."""
    root = block.group.query_key.features**0.5 if isinstance(block, AttentionBlock) else 1.0
    for role, projection in block.projections.items():
        named: dict[str, float] = {}
        if role == "query" and root > 1:
            named = {"1/sqrt(d): the scale of queries twice": 1 / root, "sqrt(d): the scale of queries taken out": root}
        endings = [("",)] if projection.bias is None else [("", "_bias"), ("",), ("_bias",)]
        for one in endings:
            yield scaled(role, one, named)
        for given in named.values():
            yield scaled(role, endings[0], named, given)


def _lost(block: Block) -> Iterator[Atom]:
    """Biases and other parameters that are missing or zero."""
    for role, projection in block.projections.items():
        if projection.bias is not None:
            yield lost(f"{role}_bias", projection.bias)
    for role, other in block.others.items():
        yield lost(role, other.weight)
