"""The symmetry group of an attention block: elements, group laws and action; its function is `attend`.

An element permutes heads and then moves each key/value head inside its own continuous group:

    Q_{j,t} <- Q_{π(j),ρ_j(t)} U_j^T       K_j <- K_{π(j)} U_j^{-1}
    V_j     <- V_{π(j)} W_j^T              O_{j,t} <- O_{π(j),ρ_j(t)} W_j^{-1}

with biases of Q, K, V as one more row, the free shift `b_K += κ_j` where softmax cancels it, and
`b_V += v_j`, `b_O -= Σ_{j,t} v_j O_{j,t}^T` where both biases exist (arXiv 2606.17830, section 2).
π permutes key/value heads and ρ_j the query heads inside one: S_s wreath S_g. Tables of position biases and scores of
no token go with their query heads, tables up to constants that softmax cancels. Where queries and keys are normalised,
U is what `gains` says, and what heads share in latent attention moves as `latent` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.symmetries import bilinear, gains, latent, permutation
from isobasin.symmetries.bilinear import BilinearElement
from isobasin.symmetries.function import attend as attend
from isobasin.symmetries.groups import AttentionGroup, QueryKeyNorm
from isobasin.symmetries.latent import LatentElement
from isobasin.symmetries.weights import AttentionWeights

# What the names of a latent element's parts begin with.
_LATENT = "latent."
# Parts that go with the heads whose gains they are of.
_GAINS = {"trades", "query_signs", "key_signs"}


@dataclass(frozen=True)
class AttentionElement:
    """An element of `AttentionGroup`, or a batch of them (leading dimensions `...`).

    Attributes:
        outer: π, which key/value head each new one was, `(..., g)` int64.
        inner: ρ, which query head of that group each new one was, `(..., g, s)` int64.
        query_key: U, of batch shape `(..., g)`.
        value_output: W, of batch shape `(..., g)`.
        key_shift: κ on the unrotated query/key features, `(..., g, n)`; zero where it isn't free.
        value_shift: v, `(..., g, m)`; zero where it isn't free.
        trades: What normalised queries' gains are multiplied by, and keys' divided by (`AttentionGroup.trades`).
        table_shift: What is added to a query head's position biases, `(..., g, s, constants)`.
        query_signs: What the columns of normalised queries and their gains are multiplied by at last
            (`gains.unflipped`).
        key_signs: Likewise.
        latent: What moves that heads share in latent attention; None elsewhere.
    """

    outer: Tensor
    inner: Tensor
    query_key: BilinearElement
    value_output: BilinearElement
    key_shift: Tensor
    value_shift: Tensor
    trades: Tensor
    table_shift: Tensor
    query_signs: Tensor
    key_signs: Tensor
    latent: LatentElement | None = None

    def head_permutation(self) -> Tensor:
        """Which query head each new query head was, `(..., g*s)`."""
        return (self.outer.unsqueeze(-1) * self.inner.shape[-1] + self.inner).flatten(-2)

    def tensors(self) -> dict[str, Tensor]:
        """All parts by name; `from_tensors` is the inverse."""
        shared = {} if self.latent is None else self.latent.tensors()
        return {
            "outer": self.outer,
            "inner": self.inner,
            "query_key.matrix": self.query_key.matrix,
            "query_key.planes": self.query_key.planes,
            "value_output.matrix": self.value_output.matrix,
            "value_output.planes": self.value_output.planes,
            "key_shift": self.key_shift,
            "value_shift": self.value_shift,
            "trades": self.trades,
            "table_shift": self.table_shift,
            "query_signs": self.query_signs,
            "key_signs": self.key_signs,
            **{f"{_LATENT}{name}": part for name, part in shared.items()},
        }

    @classmethod
    def from_tensors(cls, parts: dict[str, Tensor]) -> AttentionElement:
        """Build an element from the parts that `tensors` names."""
        shared = {name.removeprefix(_LATENT): part for name, part in parts.items() if name.startswith(_LATENT)}
        return cls(
            parts["outer"],
            parts["inner"],
            BilinearElement(parts["query_key.matrix"], parts["query_key.planes"]),
            BilinearElement(parts["value_output.matrix"], parts["value_output.planes"]),
            parts["key_shift"],
            parts["value_shift"],
            parts["trades"],
            parts["table_shift"],
            parts["query_signs"],
            parts["key_signs"],
            LatentElement(**shared) if shared else None,
        )

    def __getitem__(self, index: int) -> AttentionElement:
        """One element of a batch."""
        return self.from_tensors({name: part[index] for name, part in self.tensors().items()})

    def copy_(self, other: AttentionElement) -> None:
        """Take over another element's values, whatever device they are on."""
        for name, part in other.tensors().items():
            self.tensors()[name].copy_(part)

    def to(self, device: torch.device | str) -> AttentionElement:
        """The same element on another device."""
        return self.from_tensors({name: part.to(device) for name, part in self.tensors().items()})


def identity(
    group: AttentionGroup, batch: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> AttentionElement:
    """The identity element."""
    heads = (*batch, group.groups)
    return AttentionElement(
        permutation.identity(batch, group.groups, device),
        permutation.identity(heads, group.queries, device),
        bilinear.identity(group.query_key, heads, device),
        bilinear.identity(group.value_output, heads, device),
        torch.zeros(*heads, len(group.query_key.linear), dtype=torch.float64, device=device),
        torch.zeros(*heads, group.value_output.features, dtype=torch.float64, device=device),
        gains.identity(group, batch, device),
        torch.zeros(*heads, group.queries, group.table_shifts, dtype=torch.float64, device=device),
        *gains.unflipped(group, batch, device),
        None if group.latent is None else latent.identity(group.latent, batch, device),
    )


def sample(
    group: AttentionGroup,
    generator: torch.Generator,
    batch: tuple[int, ...] = (),
    condition: float = 10.0,
    shift: float = 1.0,
) -> AttentionElement:
    """Random elements.

    Args:
        group: The group.
        generator: CPU generator; the only source of randomness.
        batch: Leading dimensions.
        condition: Condition number of every U and W.
        shift: Standard deviation of the bias shifts, where they are free.
    """
    heads = (*batch, group.groups)
    element = AttentionElement(
        permutation.sample(batch, group.groups, generator),
        permutation.sample(heads, group.queries, generator),
        bilinear.sample(group.query_key, heads, generator, condition),
        bilinear.sample(group.value_output, heads, generator, condition),
        torch.randn(*heads, len(group.query_key.linear), generator=generator, dtype=torch.float64),
        torch.randn(*heads, group.value_output.features, generator=generator, dtype=torch.float64),
        gains.identity(group, batch),
        shift * torch.randn(*heads, group.queries, group.table_shifts, generator=generator, dtype=torch.float64),
        *gains.unflipped(group, batch),
        None if group.latent is None else latent.sample(group.latent, generator, batch, condition),
    )
    if group.norm is not None:
        query_key, trades, query, key = gains.sample(group, batch, generator, condition)
        element = replace(element, query_key=query_key, trades=trades, query_signs=query, key_signs=key)
    if not group.permuted:
        fixed = identity(group, batch)
        element = replace(element, outer=fixed.outer, inner=fixed.inner)
    return replace(
        element,
        key_shift=element.key_shift * (shift * group.key_shift),
        value_shift=element.value_shift * (shift * group.value_shift),
    )


def compose(group: AttentionGroup, second: AttentionElement, first: AttentionElement) -> AttentionElement:
    """The element that acts as `first` and then `second`."""
    moved = _permuted(group, first, second.outer)
    trades = gains.permuted(group.query_key, gains.holders(group, second.query_key), moved.trades) * second.trades
    query_key = bilinear.compose(second.query_key, moved.query_key)
    query_key, trades = gains.settled(group, query_key, trades, second.query_key, moved.query_key)
    key_shift = torch.linalg.solve(second.query_key.matrix, moved.key_shift.unsqueeze(-2), left=False)
    value_shift = bilinear.act_left(group.value_output, second.value_output, moved.value_shift.unsqueeze(-2))
    query, key = _carried_signs(group, second.query_key, second.inner, moved)
    return AttentionElement(
        moved.outer,
        permutation.take(moved.inner, second.inner),
        query_key,
        bilinear.compose(second.value_output, moved.value_output),
        key_shift.squeeze(-2) + second.key_shift,
        value_shift.squeeze(-2) + second.value_shift,
        trades,
        permutation.take(moved.table_shift, second.inner) + second.table_shift,
        query * second.query_signs,
        key * second.key_signs,
        latent.compose(second.latent, first.latent) if second.latent and first.latent else None,
    )


def inverse(group: AttentionGroup, element: AttentionElement) -> AttentionElement:
    """The inverse element."""
    back = element.outer.argsort(-1)
    moved = _permuted(group, element, back)
    inner = moved.inner.argsort(-1)
    query_key, undo = bilinear.inverse(moved.query_key), bilinear.inverse(moved.value_output)
    trades = gains.permuted(group.query_key, gains.holders(group, query_key), 1 / moved.trades)
    query_key, trades = gains.settled(group, query_key, trades, moved.query_key)
    value_shift = bilinear.act_left(group.value_output, undo, moved.value_shift.unsqueeze(-2)).squeeze(-2)
    return AttentionElement(
        back,
        inner,
        query_key,
        undo,
        -(moved.key_shift.unsqueeze(-2) @ moved.query_key.matrix).squeeze(-2),
        -value_shift,
        trades,
        -permutation.take(moved.table_shift, inner),
        *_carried_signs(group, query_key, inner, moved),
        latent.inverse(element.latent) if element.latent else None,
    )


def _carried_signs(
    group: AttentionGroup, query_key: BilinearElement, inner: Tensor, moved: AttentionElement
) -> tuple[Tensor, Tensor]:
    """Column signs of an element after the order of queries, and the turns and permutations, of another one."""
    query, key = moved.query_signs, moved.key_signs
    if group.own_gains:
        query = permutation.take(query, inner)
    if group.norm in (QueryKeyNorm.head, QueryKeyNorm.full):
        holders = gains.holders(group, query_key)
        query = gains.carried(group, holders, query)
        key = gains.carried(group, holders, key.unsqueeze(-2)).squeeze(-2)
    return query, key


def with_heads(element: AttentionElement, other: AttentionElement) -> AttentionElement:
    """An element that permutes heads, and shifts their position biases, as another one."""
    # Copies: a file can't hold tensors that share memory.
    outer, inner, table_shift = (t.clone() for t in (other.outer, other.inner, other.table_shift))
    return replace(element, outer=outer, inner=inner, table_shift=table_shift)


def same_heads(one: AttentionElement, other: AttentionElement) -> bool:
    """Whether two elements permute heads and shift their position biases alike."""
    pairs = (one.outer, other.outer), (one.inner, other.inner), (one.table_shift, other.table_shift)
    return all(torch.equal(x, y) for x, y in pairs)


def contains(group: AttentionGroup, element: AttentionElement) -> bool:
    """Whether an element of the right shapes is one of this group."""
    if not (permutation.is_permutation(element.outer) and permutation.is_permutation(element.inner)):
        return False
    fixed = identity(group, tuple(element.outer.shape[:-1]), element.outer.device)
    in_order = torch.equal(element.outer, fixed.outer) and torch.equal(element.inner, fixed.inner)
    normed = group.norm is None or gains.contains(group, element.query_key, element.trades)
    normed &= all(bool((x.abs() == 1).all()) for x in (element.query_signs, element.key_signs))
    shared = element.latent is None or latent.contains(element.latent)
    return normed and shared and (group.permuted or in_order)


def _permuted(group: AttentionGroup, element: AttentionElement, outer: Tensor) -> AttentionElement:
    """Every per-head part of an element, taken along another permutation of key/value heads."""
    parts = element.tensors()
    fixed = {name for name in parts if name.startswith(_LATENT)} | (set() if group.own_gains else _GAINS)
    moved = {name: permutation.take(part, outer) for name, part in parts.items() if name not in fixed}
    return AttentionElement.from_tensors({**parts, **moved})


def permute(weights: AttentionWeights, outer: Tensor, inner: Tensor) -> AttentionWeights:
    """The head permutation alone: whole heads moved, nothing else."""
    heads = (outer.unsqueeze(-1) * inner.shape[-1] + inner).flatten(-2)

    def queries(x: Tensor) -> Tensor:
        return permutation.take(x.flatten(inner.ndim - 2, inner.ndim - 1), heads).reshape(x.shape)

    own = weights.query_gain is not None and weights.query_gain.shape[-3:-1] == weights.query.shape[-4:-2]
    shared = {"output_bias"} | (set() if own else {"query_gain", "key_gain"})
    shared |= {name for name in weights.tensors() if "_down" in name or name.startswith("rotary_key")}
    per_query = {"query", "query_bias", "rotary_query", "output", "query_gain", "table", "sink"}
    moved = {
        name: queries(x) if name in per_query else permutation.take(x, outer)
        for name, x in weights.tensors().items()
        if name not in shared
    }
    return replace(weights, **moved)


def act(group: AttentionGroup, element: AttentionElement, weights: AttentionWeights) -> AttentionWeights:
    """The moved weights; the block's function is the same.

    Args:
        group: The block's group.
        element: Of batch shape `(...)`.
        weights: Float64, of the same leading dimensions.

    Returns:
        New weights; the input is not changed.
    """
    w = permute(weights, element.outer, element.inner)
    qk, vo = group.query_key, group.value_output
    u, v = element.query_key, element.value_output
    left, right = bilinear.act_left, bilinear.act_right
    if group.norm is QueryKeyNorm.centred:
        left = right = gains.act
    moved = replace(
        w,
        query=left(qk, u, w.query.flatten(-3, -2)).reshape(w.query.shape),
        key=right(qk, u, w.key),
        value=bilinear.act_left(vo, v, w.value),
        output=bilinear.act_right(vo, v, w.output.flatten(-3, -2)).reshape(w.output.shape),
    )
    if w.query_bias is not None:
        moved = replace(moved, query_bias=left(qk, u, w.query_bias))
    if w.key_bias is not None:
        key_bias = right(qk, u, w.key_bias.unsqueeze(-2)).squeeze(-2)
        moved = replace(moved, key_bias=shift_key_bias(group, key_bias, element.key_shift))
    if w.value_bias is not None:
        value_bias = bilinear.act_left(vo, v, w.value_bias.unsqueeze(-2)).squeeze(-2)
        moved = replace(moved, value_bias=value_bias + element.value_shift)
    if w.output_bias is not None and group.value_shift:
        shift = torch.einsum("...gm,...gsdm->...d", element.value_shift, moved.output)
        moved = replace(moved, output_bias=w.output_bias - shift)
    if w.query_gain is not None and w.key_gain is not None:
        holders = gains.holders(group, u)
        trades = gains.spread(qk, element.trades)
        moved = replace(
            moved,
            query_gain=gains.carried(group, holders, w.query_gain) * trades.unsqueeze(-2),
            key_gain=gains.carried(group, holders, w.key_gain.unsqueeze(-2)).squeeze(-2) / trades,
        )
        moved = gains.flipped(moved, element.query_signs, element.key_signs)
    if w.table is not None and group.table:
        moved = replace(moved, table=w.table + element.table_shift[..., list(group.table)])
    if group.latent is not None and element.latent is not None:
        moved = latent.act(group.latent, element.latent, moved)
    return moved


def shift_key_bias(group: AttentionGroup, bias: Tensor, shift: Tensor) -> Tensor:
    """`b_K + κ` on the unrotated features, `(..., g, n)`."""
    linear = list(group.query_key.linear)
    bias = bias.clone()
    bias[..., linear] += shift
    return bias
