"""What an attention block computes, written plainly."""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.symmetries.bilinear import BilinearGroup, join, linear_part, plane_part
from isobasin.symmetries.groups import AttentionGroup, QueryKeyNorm
from isobasin.symmetries.weights import AttentionWeights

# So large that a scale of Q or K, which only an epsilon of zero would hide, is seen for what it is.
_EPSILON = 1e-2


def attend(
    weights: AttentionWeights, group: AttentionGroup, hidden: Tensor, angles: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The block's function, written plainly: what every element of the group leaves unchanged.

    `softmax(Q K^T / sqrt(n)) V O^T + b_O`, with the planes of Q and K (and of V, if `value_output` has planes) rotated
    by `angles`, after the norm if there is one. In latent attention a head's rotary queries with the one rotary key are
    another term of `Q K^T`. Heads that can't be permuted get the slopes `2^-i` of ALiBi; entries of a table of position
    biases are spread over pairs of tokens, those of one constant over all pairs of some tokens.

    Args:
        weights: One block, without leading dimensions.
        group: Its group; says which features are rotated.
        hidden: `(batch, tokens, d)`.
        angles: Rotation of each plane at each position in radians, `(tokens, planes)`; needed where the
            group has planes.
        causal: Mask later positions.

    Returns:
        `(batch, tokens, d)`.
    """

    def project(x: str, einsum: str, source: Tensor = hidden) -> Tensor:
        bias = getattr(weights, f"{x}_bias", None)
        projected = torch.einsum(einsum, source, getattr(weights, x))
        projected = projected if bias is None else projected + bias.unsqueeze(-2)
        gain = getattr(weights, f"{x}_gain", None) if group.norm else None
        return projected if gain is None else _normalised(group, projected) * gain.unsqueeze(-2)

    def rotate(pair: BilinearGroup, x: Tensor) -> Tensor:
        if not pair.planes or angles is None:
            return x
        turn = torch.polar(torch.ones_like(angles), angles)
        return join(pair, linear_part(pair, x), plane_part(pair, x) * turn)

    latents: dict[str, Tensor] = dict.fromkeys(("query", "key_value"), hidden)
    for name in () if group.latent is None else group.latent.widths:
        latents[name] = _rms_normalised(project(f"{name}_down", "btd,dn->btn"), -1)
    query = rotate(group.query_key, project("query", "btd,gsdn->bgstn", latents["query"]))
    key = rotate(group.query_key, project("key", "btd,gdn->bgtn", latents["key_value"]))
    value = rotate(group.value_output, project("value", "btd,gdm->bgtm", latents["key_value"]))
    scores = torch.einsum("bgstn,bgun->bgstu", query, key)
    if group.latent is not None:
        query = rotate(group.rotary, project("rotary_query", "btd,gsdn->bgstn", latents["query"]))
        key = rotate(group.rotary, project("rotary_key", "btd,dn->btn"))
        scores = scores + torch.einsum("bgstn,bun->bgstu", query, key)
    scores = scores / group.query_key.features**0.5
    scores = scores + _position_biases(weights, group, hidden.shape[1])
    if causal:
        tokens = hidden.shape[1]
        scores = scores.masked_fill(torch.ones(tokens, tokens, device=hidden.device).triu(1).bool(), -torch.inf)
    if weights.sink is not None:
        sink = weights.sink[..., None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], -1)
    shares = scores.softmax(-1)[..., : hidden.shape[1]]
    heads = torch.einsum("bgstu,bgum->bgstm", shares, value)
    out = torch.einsum("bgstm,gsdm->btd", heads, weights.output)
    return out if weights.output_bias is None else out + weights.output_bias


def _normalised(group: AttentionGroup, x: Tensor) -> Tensor:
    """Queries or keys, `(batch, heads..., tokens, n)`, over the root mean square of a head or of all."""
    if group.norm is QueryKeyNorm.centred:
        x = x - x.mean(-1, keepdim=True)
    return _rms_normalised(x, *(range(1, x.ndim - 2) if group.norm is QueryKeyNorm.full else []), -1)


def _rms_normalised(x: Tensor, *axes: int) -> Tensor:
    return x * (x.square().mean(axes, keepdim=True) + _EPSILON).rsqrt()


def _position_biases(weights: AttentionWeights, group: AttentionGroup, tokens: int) -> Tensor:
    """What is added to the scores of every head, `(g, s, tokens, tokens)`; zero without slopes or table."""
    position = torch.arange(tokens, device=weights.query.device)
    if weights.table is not None:
        return weights.table[..., _entries(group.table, position)]
    slopes = torch.zeros(group.kv_heads, group.queries_per_kv, dtype=torch.float64, device=position.device)
    if not group.permuted:
        slopes = 0.5 ** torch.arange(1.0, group.heads + 1, dtype=torch.float64, device=position.device).view_as(slopes)
    return -slopes[..., None, None] * (position[:, None] - position).abs()


def _entries(table: tuple[int, ...], position: Tensor) -> Tensor:
    """An entry for every pair of tokens, `(tokens, tokens)`; one token's are all of one number."""
    numbers = [[i for i, number in enumerate(table) if number == n] for n in range(max(table) + 1)]
    rows = [numbers[t % len(numbers)] for t in range(len(position))]
    return torch.tensor([[row[(t + u) % len(row)] for u in range(len(rows))] for t, row in enumerate(rows)]).to(
        position
    )
