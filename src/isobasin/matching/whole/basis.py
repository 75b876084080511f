"""From the tensors along two residual streams to the map of the basis that brings one onto the other.

Tensors come one after another, as matrices `(n, d)` whose columns are the stream's coordinates, and none is kept. Over
the maps T of a group,

    minimise  Σ_vectors ||A - B T||² + Σ_covectors ||A - B T^{-T}||² + Σ_gains ||a - b |T|||²,

which for orthogonal T is `max <T, C>`, `C = Σ B^T A`: orthogonal Procrustes, one assignment for signed permutations,
and the problem of a head's map (`isobasin.matching.subspace`) for GL(d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobasin.matching import subspace
from isobasin.matching.assignment import linear_sum_assignment
from isobasin.matching.products import squares, with_rows
from isobasin.symmetries.along import Role
from isobasin.symmetries.stream import Basis, StreamGroup, complement, lift

# Of the solver on GL(d) at a time.
_STEPS = 5

# So many times the width of rows are gathered, for maps in GL(d), before a triangular factor takes their place.
_ROWS = 8

# Rows whose products are added up at once.
_AT_ONCE = 2048


class StreamFit:
    """The sums over the tensors along two streams that the best map follows from.

    Attributes:
        group: Which maps there are.
    """

    def __init__(self, group: StreamGroup, device: torch.device | str = "cpu") -> None:
        """No tensor yet."""
        self.group = group
        self._zeros = torch.zeros(group.width, group.width, dtype=torch.float64, device=device)
        self._cross, self._gains = self._zeros.clone(), self._zeros.clone()
        self._sides = {role: [self._zeros.new_zeros(1, 2 * group.width)] for role in (Role.vector, Role.covector)}

    def add(self, role: Role, ours: Tensor, theirs: Tensor, weight: float = 1.0) -> None:
        """Add one tensor of the reference and of the model, `(n, d)` float64, multiplied by a weight."""
        if self.group.basis is not Basis.linear:
            total = self._gains if role is Role.gain else self._cross
            for one, other in zip(ours.split(_AT_ONCE), theirs.split(_AT_ONCE), strict=True):
                # Where coordinates only change places, sums decide between them and become no entry of a map.
                product = with_rows(one.mT)(other.mT) if self.group.basis.discrete else other.mT @ one
                total.add_(product, alpha=weight**2)
            return
        side = self._sides[role]
        side.append(torch.cat([theirs, ours], -1) * weight)
        if sum(map(len, side)) > _ROWS * self.group.width:
            side[:] = [torch.linalg.qr(torch.cat(side), mode="r").R]

    def within(self, group: StreamGroup, matrix: Tensor) -> StreamFit:
        """The same sums, of vectors and covectors, for maps of another group before a map of this one."""
        found = StreamFit(group, self._cross.device)
        found._cross.add_(matrix @ self._cross)
        return found

    def best(self) -> Tensor:
        """The best map T of the group, `(d, d)`."""
        basis, cross = self.group.basis, self._cross
        if basis is Basis.linear:
            return self._linear()
        if basis is Basis.orthogonal:
            return subspace.polar(cross)
        if basis is Basis.centred:
            within = complement(self.group.width, cross.device)
            return lift(subspace.polar(within.mT @ cross @ within), within)
        signs = torch.ones_like(cross)
        if basis is Basis.signed:
            signs[cross < 0] = -1
        rows, columns = linear_sum_assignment((signs * cross + self._gains).cpu().numpy(), maximize=True)
        matrix = torch.zeros_like(cross)
        matrix[rows, columns] = signs[rows, columns]
        return matrix

    def fall(self, matrix: Tensor) -> float:
        """By how much a map of the group lowers the sum of squares."""
        if self.group.basis is Basis.linear:
            maps = {Role.vector: matrix, Role.covector: torch.linalg.inv(matrix).mT}
            sides = ((maps[role], *torch.cat(side).split(self.group.width, -1)) for role, side in self._sides.items())
            return sum(squares(theirs, ours) - squares(theirs @ by, ours) for by, theirs, ours in sides)
        one = torch.eye(self.group.width, dtype=torch.float64, device=matrix.device)
        moved = ((matrix - one) * self._cross).sum() + ((matrix.abs() - one) * self._gains).sum()
        return 2 * float(moved)

    def _linear(self) -> Tensor:
        """T on GL(d): with `L <- L U^T` and `R <- R U^{-1}`, vectors are L, covectors R, and T is U^T."""
        sides = [torch.cat(self._sides[role]).split(self.group.width, -1) for role in (Role.vector, Role.covector)]
        core = subspace.reduce(*(side.unsqueeze(0) for theirs, ours in sides for side in (ours, theirs)))
        # Blocks are matched anew after each of these: a few steps do.
        return subspace.gauss_newton(core, max_iterations=_STEPS).matrix[0].mT.contiguous()
