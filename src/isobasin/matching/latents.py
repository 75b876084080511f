"""The latents of two blocks: the rotation that brings one onto the other, and the gains that are reached.

With gains folded into the readers, an orthogonal map P of a latent minimises

    ||D_A - D_B P||² + Σ_readers ||W_A - P^T W_B||²,

which is orthogonal Procrustes of `D_B^T D_A + Σ W_B W_A^T`; what writes the latent alone already tells a planted P.
"""

from __future__ import annotations

from torch import Tensor

from isobasin.matching.subspace import polar
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.groups import ROTARY, AttentionGroup
from isobasin.symmetries.product import Element
from isobasin.symmetries.rotation import Rotation
from isobasin.symmetries.scale import GainScaling
from isobasin.symmetries.stream import divisible
from isobasin.symmetries.weights import AttentionWeights


def of(group: AttentionGroup) -> list[Rotation | GainScaling]:
    """The factors of the latents that all heads share."""
    return [factor for factor in group.factors if isinstance(factor, Rotation | GainScaling)]


def fit(group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights, *, readers: bool = False) -> Parts:
    """The nearest maps of the latents, and the trades to the reference's gains.

    Args:
        group: Of the blocks.
        reference: Float64 weights with leading dimensions `...`.
        model: Weights of the same shapes.
        readers: Look at what reads a latent too; its heads are in the reference's order then.
    """
    a, b = reference.tensors(), model.tensors()
    found: Parts = {}
    for factor in of(group):
        if isinstance(factor, Rotation):
            found[factor.part] = polar(_cross(factor, a, b, readers=readers))
        else:
            found[factor.part] = divisible(a[factor.multiplied[0]]) / b[factor.multiplied[0]]
    return found


def kept(group: AttentionGroup, element: Element) -> Parts:
    """An element's parts that all heads share."""
    return {name: element.parts[name] for name in (ROTARY, *(factor.part for factor in of(group)))}


def _cross(factor: Rotation, a: Parts, b: Parts, *, readers: bool) -> Tensor:
    down, bias = factor.writers
    cross = b[down].mT @ a[down]
    if bias in a:
        cross = cross + b[bias].unsqueeze(-1) * a[bias].unsqueeze(-2)
    for reader in factor.readers if readers else ():
        each = b[reader] @ a[reader].mT
        cross = cross + each.flatten(cross.ndim - 2, -3).sum(-3)
    return cross


def carried(group: AttentionGroup, reference: AttentionWeights, model: AttentionWeights) -> AttentionWeights:
    """The model with its latents, if there are any, brought onto the reference's as far as what writes them tells."""
    found, moved = fit(group, reference, model), model.tensors()
    for factor in of(group):
        moved = factor.act(found, moved)
    return AttentionWeights(**moved)
