"""The symmetry group of an attention block: elements, group laws and action; its function is `attend`.

An element permutes heads and then moves each key/value head inside its own continuous group:

    Q_{j,t} <- Q_{π(j),ρ_j(t)} U_j^T       K_j <- K_{π(j)} U_j^{-1}
    V_j     <- V_{π(j)} W_j^T              O_{j,t} <- O_{π(j),ρ_j(t)} W_j^{-1}

with biases of Q, K, V as one more row, the free shift `b_K += κ_j` where softmax cancels it, and
`b_V += v_j`, `b_O -= Σ_{j,t} v_j O_{j,t}^T` where both biases exist (arXiv 2606.17830, section 2).
π permutes key/value heads and ρ_j the query heads inside one: S_s wreath S_g. Tables of position biases and scores of
no token go with their query heads, tables up to constants that softmax cancels. Where queries and keys are normalised,
U is what `normed` says, and what heads share in latent attention moves as `groups.LatentGroup` says. Each of these is a
factor of the group (`AttentionGroup.factors`), from which all here follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.symmetries.function import attend as attend
from isobasin.symmetries.groups import AttentionGroup
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


def identity(
    group: AttentionGroup, batch: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> AttentionElement:
    """The identity element."""
    return AttentionElement(group.parts_of_identity(batch, device))


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
    return AttentionElement(group.parts_of_sample(generator, batch, condition, shift))


def compose(group: AttentionGroup, second: AttentionElement, first: AttentionElement) -> AttentionElement:
    """The element that acts as `first` and then `second`."""
    return AttentionElement(group.composed(second.tensors(), first.tensors()))


def inverse(group: AttentionGroup, element: AttentionElement) -> AttentionElement:
    """The inverse element."""
    return AttentionElement(group.inverted(element.tensors()))


def contains(group: AttentionGroup, element: AttentionElement) -> bool:
    """Whether an element of the right shapes is one of this group."""
    return group.holds(element.tensors())


def act(group: AttentionGroup, element: AttentionElement, weights: AttentionWeights) -> AttentionWeights:
    """The moved weights; the block's function is the same.

    Args:
        group: The block's group.
        element: Of batch shape `(...)`.
        weights: Float64, of the same leading dimensions.

    Returns:
        New weights; the input is not changed.
    """
    return AttentionWeights(**group.moved(element.tensors(), weights.tensors()))


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
