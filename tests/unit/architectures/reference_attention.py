"""Attention computed plainly from canonical weights, and a random move of its group: what the tests compare to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobasin.symmetries.groups import AttentionGroup, BilinearGroup
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
    memory: Tensor | None = None,
    scaled: bool = True,
) -> Tensor:
    """The block's output for one sequence `hidden`, `(tokens, width)`, which reads itself or `memory`."""
    memory = hidden if memory is None else memory

    def with_bias(heads: Tensor, bias: Tensor | None) -> Tensor:
        return heads if bias is None else heads + bias[..., None, :]

    query = with_bias(torch.einsum("td,gsdn->gstn", hidden, weights.query), weights.query_bias)
    key = with_bias(torch.einsum("td,gdn->gtn", memory, weights.key), weights.key_bias)
    value = with_bias(torch.einsum("td,gdm->gtm", memory, weights.value), weights.value_bias)
    query, key = (rotate(x, group.query_key.planes, tables) for x in (query, key))
    value = rotate(value, group.value_output.planes, tables)
    scores = torch.einsum("gsmn,gkn->gsmk", query, key) / (query.shape[-1] ** 0.5 if scaled else 1.0)
    if causal:
        tokens = len(hidden)
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
    mixed = torch.einsum("gsmk,gkf->gsmf", scores.softmax(-1), value)
    output = torch.einsum("gsmf,gsdf->md", mixed, weights.output)
    return output if weights.output_bias is None else output + weights.output_bias


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


def random_move(weights: AttentionWeights, group: AttentionGroup, generator: torch.Generator) -> AttentionWeights:
    """The weights moved by a random element: permuted heads, new bases, shifted biases."""
    outer = torch.randperm(group.groups, generator=generator)
    inner = [torch.randperm(group.queries, generator=generator) for _ in range(group.groups)]
    us = torch.stack([random_map(group.query_key, generator) for _ in range(group.groups)])
    vs = torch.stack([random_map(group.value_output, generator) for _ in range(group.groups)])
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
    new = replace(weights, **moved)
    if group.key_shift:
        shift = torch.zeros_like(new.key_bias)
        shift[:, list(group.query_key.linear)] = 1.0
        new = replace(new, key_bias=new.key_bias + shift)
    if group.value_shift:
        shift = torch.randn(new.value_bias.shape, generator=generator, dtype=torch.float64)
        traded = torch.einsum("gm,gsdm->d", shift, new.output)
        new = replace(new, value_bias=new.value_bias + shift, output_bias=new.output_bias - traded)
    return new
