"""Elements of the symmetry group of an attention block; its function is `attend`.

An element permutes heads and then moves each key/value head inside its own continuous group:

    Q_{j,t} <- Q_{π(j),ρ_j(t)} U_j^T       K_j <- K_{π(j)} U_j^{-1}
    V_j     <- V_{π(j)} W_j^T              O_{j,t} <- O_{π(j),ρ_j(t)} W_j^{-1}

with biases of Q, K, V as one more row, the free shift `b_K += κ_j` where softmax cancels it, and
`b_V += v_j`, `b_O -= Σ_{j,t} v_j O_{j,t}^T` where both biases exist (arXiv 2606.17830, section 2).
π permutes key/value heads and ρ_j the query heads inside one: S_s wreath S_g. Tables of position biases and scores of
no token go with their query heads, tables up to constants that softmax cancels. Where queries and keys are normalised,
U is what `normed` says, and what heads share in latent attention moves as `groups.LatentGroup` says. Each of these is a
factor of the group (`AttentionGroup.factors`), from which all follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.symmetries.permutation import Heads, nested
from isobasin.symmetries.product import Element
from isobasin.symmetries.weights import AttentionWeights

# Parts of an element that blocks with one table of position biases have in common.
_COMMON = ("outer", "inner", "table_shift")


class AttentionElement(Element):
    """An element of `AttentionGroup`, or a batch of them (leading dimensions `...`).

    Its parts are those of the group's factors: `outer` and `inner`, the permutations π and ρ; `query_key.matrix`,
    `query_key.planes` and the same of `value_output`, the maps U and W; `key_shift` and `value_shift`, κ and v; and
    where the group has them `table_shift`, `trades`, `query_signs`, `key_signs` and those of `latent`.
    """

    @property
    def outer(self) -> Tensor:
        """π, which key/value head each new one was, `(..., g)` int64."""
        return self.parts["outer"]

    @property
    def inner(self) -> Tensor:
        """ρ, which query head of that group each new one was, `(..., g, s)` int64."""
        return self.parts["inner"]

    def head_permutation(self) -> Tensor:
        """Which query head each new query head was, `(..., g*s)`."""
        return nested(self.outer, self.inner)


def with_heads(element: AttentionElement, other: AttentionElement) -> AttentionElement:
    """An element that permutes heads, and shifts their position biases, as another one."""
    # Copies: a file can't hold tensors that share memory.
    return element.having({name: other.parts[name].clone() for name in _COMMON if name in other.parts})


def same_heads(one: AttentionElement, other: AttentionElement) -> bool:
    """Whether two elements permute heads and shift their position biases alike."""
    return all(torch.equal(one.parts[name], other.parts[name]) for name in _COMMON if name in one.parts)


def permute(weights: AttentionWeights, outer: Tensor, inner: Tensor) -> AttentionWeights:
    """The head permutation alone: whole heads moved, nothing else."""
    heads = Heads(outer.shape[-1], inner.shape[-1])
    return AttentionWeights(**heads.act({"outer": outer, "inner": inner}, weights.tensors()))
