"""Attention computed plainly from canonical weights, and a random move of its group: what the tests compare to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobasin.symmetries.groups import AttentionGroup, BilinearGroup, LatentGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights

Tables = tuple[Tensor, Tensor]


def rotate(heads: Tensor, planes: tuple[tuple[int, int], ...], tables: Tables | None) -> Tensor:
    """Turn `heads`, `(..., tokens, features)`, by angles whose cosines and sines are `(tokens, planes)`."""
    turned = heads.clone()
    for p, (a, b) in enumerate(planes):
        assert tables is not None
        cos, sin = tables[0][:, p], tables[1][:, p]
        turned[..., a] = heads[..., a] * cos - heads[..., b] * sin
        turned[..., b] = heads[..., a] * sin + heads[..., b] * cos
    return turned


def attention(
    weights: AttentionWeights,
    group: AttentionGroup,
    hidden: Tensor,
    tables: Tables | None,
    *,
    causal: bool,
    scale: float | None = None,
    softcap: float | None = None,
    epsilon: float = 0.0,
    bias: Tensor | None = None,
    memory: Tensor | None = None,
) -> Tensor:
    """The block's output for one sequence `hidden`, `(tokens, width)`, which reads itself or `memory`.

    Scores by `1 / sqrt(d_h)` if by no `scale`; `epsilon` is that of the norm of queries and keys, or of latents, `bias`
    what is added to the scores of every head, `(g, s, tokens, tokens)`.
    """
    memory = hidden if memory is None else memory

    def with_bias(heads: Tensor, bias: Tensor | None) -> Tensor:
        return heads if bias is None else heads + bias[..., None, :]

    def latent(hidden: Tensor, down: Tensor | None, bias: Tensor | None) -> Tensor:
        if down is None:
            return hidden
        plain = with_bias(hidden @ down, bias)
        return plain / (plain.square().mean(-1, keepdim=True) + epsilon).sqrt()

    asking = latent(hidden, weights.query_down, weights.query_down_bias)
    asked = latent(memory, weights.key_value_down, weights.key_value_down_bias)
    query = with_bias(torch.einsum("td,gsdn->gstn", asking, weights.query), weights.query_bias)
    key = with_bias(torch.einsum("td,gdn->gtn", asked, weights.key), weights.key_bias)
    value = with_bias(torch.einsum("td,gdm->gtm", asked, weights.value), weights.value_bias)
    if weights.query_gain is not None:
        query = normalised(query, group, epsilon) * weights.query_gain[..., None, :]
        key = normalised(key, group, epsilon) * weights.key_gain[..., None, :]
    query, key = (rotate(x, group.query_key.planes, tables) for x in (query, key))
    value = rotate(value, group.value_output.planes, tables)
    scores = torch.einsum("gsmn,gkn->gsmk", query, key)
    if group.latent is not None:
        turning = torch.einsum("td,gsdn->gstn", asking, weights.rotary_query)
        shared = with_bias(memory @ weights.rotary_key, weights.rotary_key_bias)
        turning, shared = (rotate(x, group.latent.rotary.planes, tables) for x in (turning, shared))
        scores = scores + torch.einsum("gsmn,kn->gsmk", turning, shared)
    scores = scores * (scale or query.shape[-1] ** -0.5)
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores if bias is None else scores + bias
    if causal:
        tokens = len(hidden)
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
    if weights.sink is not None:
        scores = torch.cat([scores, weights.sink[..., None, None].expand(*scores.shape[:3], 1)], -1)
    mixed = torch.einsum("gsmk,gkf->gsmf", scores.softmax(-1)[..., : len(memory)], value)
    output = torch.einsum("gsmf,gsdf->md", mixed, weights.output)
    return output if weights.output_bias is None else output + weights.output_bias


def normalised(heads: Tensor, group: AttentionGroup, epsilon: float) -> Tensor:
    """Queries or keys, `(..., tokens, features)`, over their root mean square: a head's, or that of all heads.

    Under LayerNorm their mean goes first.
    """
    if group.norm is QueryKeyNorm.centred:
        heads = heads - heads.mean(-1, keepdim=True)
    squares = heads.square().mean(-1, keepdim=True)
    if group.norm is QueryKeyNorm.full:
        squares = squares.mean(tuple(range(squares.ndim - 2)), keepdim=True)
    return heads / (squares + epsilon).sqrt()


def random_signs(group: BilinearGroup, generator: torch.Generator) -> Tensor:
    """What a norm lets pass without its gains: a sign of every plane and every unrotated feature."""
    signs = torch.randint(2, (group.features,), generator=generator).double() * 2 - 1
    for a, b in group.planes:
        signs[b] = signs[a]
    return signs.diag()


def random_sign(group: BilinearGroup, generator: torch.Generator) -> Tensor:
    """What LayerNorm lets pass without its gains: a sign of all features."""
    return (torch.randint(2, (), generator=generator) * 2 - 1) * torch.eye(group.features, dtype=torch.float64)


def random_map(group: BilinearGroup, generator: torch.Generator) -> Tensor:
    """A well-conditioned random element."""
    u = torch.zeros(group.features, group.features, dtype=torch.float64)
    linear = torch.tensor(group.linear, dtype=torch.long)
    noise = torch.randn(len(linear), len(linear), generator=generator, dtype=torch.float64)
    u[linear[:, None], linear[None, :]] = torch.eye(len(linear), dtype=torch.float64) + 0.2 * noise
    for a, b in group.planes:
        angle, scale = torch.rand(2, generator=generator, dtype=torch.float64) + 0.5
        u[a, a] = u[b, b] = scale * angle.cos()
        u[a, b], u[b, a] = -scale * angle.sin(), scale * angle.sin()
    return u


def random_move(
    weights: AttentionWeights, group: AttentionGroup, generator: torch.Generator, heads: int = 0
) -> AttentionWeights:
    """The weights moved by a random element: permuted heads, new bases, shifted biases.

    Blocks of equal `heads` permute their heads alike and shift their tables of position biases alike.
    """
    of_heads = torch.Generator().manual_seed(heads)
    order = torch.randperm if group.permuted else lambda n, generator: torch.arange(n)
    outer = order(group.kv_heads, generator=of_heads)
    inner = [order(group.queries_per_kv, generator=of_heads) for _ in range(group.kv_heads)]
    query_key = {None: random_map, QueryKeyNorm.centred: random_sign}.get(group.norm, random_signs)
    us = torch.stack([query_key(group.query_key, generator) for _ in range(group.kv_heads)])
    vs = torch.stack([random_map(group.value_output, generator) for _ in range(group.kv_heads)])
    left = {"query": us.mT, "value": vs.mT}
    right = {"key": us.inverse(), "output": vs.inverse()}
    per_query = {"query", "output"}

    moved: dict[str, Tensor] = {}
    for role, u in {**left, **right}.items():
        weight, bias = getattr(weights, role)[outer], getattr(weights, f"{role}_bias")
        if role in per_query:
            weight = torch.stack([w[order] for w, order in zip(weight, inner, strict=True)])
        moved[role] = torch.einsum("g...n,gnk->g...k", weight, u)
        if bias is not None and role != "output":
            bias = bias[outer]
            if role in per_query:
                bias = torch.stack([b[order] for b, order in zip(bias, inner, strict=True)])
            moved[f"{role}_bias"] = torch.einsum("g...n,gnk->g...k", bias, u)
    for role in ("query_gain", "table", "sink", "rotary_query"):
        own = getattr(weights, role)
        if own is not None and own.shape[:2] == (group.kv_heads, group.queries_per_kv):
            moved[role] = torch.stack([x[order] for x, order in zip(own[outer], inner, strict=True)])
    if weights.table is not None:
        shifts = torch.randn(*weights.table.shape[:2], max(group.table) + 1, generator=of_heads, dtype=torch.float64)
        moved["table"] = moved["table"] + shifts[..., list(group.table)]
    if group.norm in (QueryKeyNorm.full, QueryKeyNorm.centred):
        moved["key_gain"] = weights.key_gain[outer]
    new = replace(weights, **moved)
    if group.key_shift:
        shift = torch.zeros_like(new.key_bias)
        shift[:, list(group.query_key.linear)] = 1.0
        new = replace(new, key_bias=new.key_bias + shift)
    if group.value_shift:
        shift = torch.randn(new.value_bias.shape, generator=generator, dtype=torch.float64)
        traded = torch.einsum("gm,gsdm->d", shift, new.output)
        new = replace(new, value_bias=new.value_bias + shift, output_bias=new.output_bias - traded)
    return new if group.latent is None else random_latent_move(new, group.latent, generator)


def random_latent_move(weights: AttentionWeights, group: LatentGroup, generator: torch.Generator) -> AttentionWeights:
    """Latents in another orthonormal basis and with other gains, and another rotary key for all heads."""
    parts = weights.tensors()
    u = random_map(group.rotary, generator)
    parts["rotary_query"] = parts["rotary_query"] @ u.mT
    for role in {"rotary_key", "rotary_key_bias"} & parts.keys():
        parts[role] = parts[role] @ u.inverse()
    for name, readers in (("query", ("query", "rotary_query")), ("key_value", ("key", "value"))):
        if f"{name}_down" not in parts:
            continue
        n = parts[f"{name}_down"].shape[-1]
        turn = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        for role in {f"{name}_down", f"{name}_down_bias"} & parts.keys():
            parts[role] = parts[role] @ turn
        for role in readers:
            parts[role] = turn.mT @ parts[role]
        parts[f"{name}_down_gain"] = torch.rand(n, generator=generator, dtype=torch.float64) - 1.5
    return AttentionWeights(**parts)
