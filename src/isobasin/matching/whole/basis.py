"""From the tensors along two residual streams to the map of the basis that brings one onto the other.

Tensors come as matrices `(d, rest)` whose rows are the stream's coordinates. Over the maps T of a group,

    minimise  Σ_vectors ||A - T^T B||² + Σ_covectors ||A - T^{-1} B||² + Σ_gains ||a - |T|^T b||²,

which for orthogonal T is `max <T, C>`, `C = Σ B A^T`: orthogonal Procrustes, one assignment for signed permutations,
and the problem of a head's map (`isobasin.matching.subspace`) for GL(d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isobasin.matching import subspace
from isobasin.symmetries.stream import Basis, StreamGroup, complement, lift

# Of the solver on GL(d) at a time.
_STEPS = 5

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StreamPairs:
    """The tensors along two streams, reference and model, by the way they move; each `(d, rest)` float64."""

    vectors: Sequence[Pair]
    covectors: Sequence[Pair]
    gains: Sequence[Pair] = ()

    @property
    def device(self) -> torch.device:
        """Where they are, whichever there are."""
        found = (x.device for pairs in (self.vectors, self.covectors, self.gains) for x, _ in pairs)
        return next(found, torch.device("cpu"))


def fit(group: StreamGroup, pairs: StreamPairs) -> Tensor:
    """The best map T of the group, `(d, d)`."""
    if group.basis is Basis.linear:
        return _linear(group, pairs)
    cross = _cross(group, [*pairs.vectors, *pairs.covectors], pairs.device)
    if group.basis is Basis.orthogonal:
        return subspace.polar(cross)
    if group.basis is Basis.centred:
        basis = complement(group.width, cross.device)
        return lift(subspace.polar(basis.mT @ cross @ basis), basis)
    gains = _cross(group, pairs.gains, pairs.device)
    signs = torch.ones_like(cross)
    if group.basis is Basis.signed:
        signs[cross < 0] = -1
    rows, columns = linear_sum_assignment((signs * cross + gains).cpu().numpy(), maximize=True)
    matrix = torch.zeros_like(cross)
    matrix[rows, columns] = signs[rows, columns]
    return matrix


def _cross(group: StreamGroup, pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """C = Σ B A^T, `(d, d)`."""
    total = torch.zeros(group.width, group.width, dtype=torch.float64, device=device)
    for a, b in pairs:
        total.addmm_(b, a.mT)
    return total


def _linear(group: StreamGroup, pairs: StreamPairs) -> Tensor:
    """T on GL(d): with `L <- L U^T` and `R <- R U^{-1}`, vectors are L, covectors R, and T is U^T."""

    def side(along: Sequence[Pair], which: int) -> Tensor:
        stacked = [pair[which].mT for pair in along]
        nothing = torch.zeros(1, group.width, dtype=torch.float64, device=pairs.device)
        return torch.cat(stacked) if stacked else nothing

    core = subspace.reduce(
        side(pairs.vectors, 0), side(pairs.vectors, 1), side(pairs.covectors, 0), side(pairs.covectors, 1)
    )
    batched = subspace.Core(*(x.unsqueeze(0) for x in vars(core).values()))
    # Blocks are matched anew after each of these: a few steps do.
    return subspace.gauss_newton(batched, max_iterations=_STEPS).matrix[0].mT.contiguous()
