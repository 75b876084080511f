"""The latents of two blocks: the rotation that brings one onto the other, and the gains that are reached.

With gains folded into the readers, an orthogonal map P of a latent minimises

    ||D_A - D_B P||² + Σ_readers ||W_A - P^T W_B||²,

which is orthogonal Procrustes of `D_B^T D_A + Σ W_B W_A^T`; what writes the latent alone already tells a planted P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.matching.subspace import polar
from isobasin.symmetries import latent
from isobasin.symmetries.groups import LatentGroup
from isobasin.symmetries.latent import LatentElement
from isobasin.symmetries.stream import least_gain
from isobasin.symmetries.weights import AttentionWeights


def fit(
    group: LatentGroup, reference: AttentionWeights, model: AttentionWeights, *, readers: bool = False
) -> LatentElement:
    """The nearest maps of the latents, and the trades to the reference's gains; rotary maps stay as they are.

    Args:
        group: Of the blocks.
        reference: Float64 weights with leading dimensions `...`.
        model: Weights of the same shapes.
        readers: Look at what reads a latent too; its heads are in the reference's order then.
    """
    a, b = reference.tensors(), model.tensors()
    found = latent.identity(group, tuple(reference.output.shape[:-4]), reference.output.device).tensors()
    for name in group.widths:
        down = f"{name}_down"
        cross = b[down].mT @ a[down]
        if f"{down}_bias" in a:
            cross = cross + b[f"{down}_bias"].unsqueeze(-1) * a[f"{down}_bias"].unsqueeze(-2)
        for reader in latent.READERS[name] if readers else ():
            each = b[reader] @ a[reader].mT
            cross = cross + each.flatten(cross.ndim - 2, -3).sum(-3)
        found[name] = polar(cross)
        found[f"{name}_trades"] = _reached(a[f"{down}_gain"]) / b[f"{down}_gain"]
    return LatentElement(**found)


def _reached(gains: Tensor) -> Tensor:
    """The reference's gains, but for those that are too small to divide by."""
    limit = least_gain(gains)
    return torch.where(gains.abs() < limit, limit.copysign(gains), gains)


def carried(group: LatentGroup, reference: AttentionWeights, model: AttentionWeights) -> AttentionWeights:
    """The model with its latents brought onto the reference's as far as what writes them tells."""
    return latent.act(group, fit(group, reference, model), model)
