"""How many directions a function doesn't see: the nullity of its Jacobian, where the singular values fall furthest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of a Jacobian say.

    Attributes:
        parameters: Its columns.
        rank: How many singular values stand before the furthest fall.
        gap: By what factor they fall there.
        level: Between the values on either side of it: what is smaller is rounding.
    """

    parameters: int
    rank: int
    gap: float
    level: float

    @property
    def nullity(self) -> int:
        """Directions of the parameters that change nothing."""
        return self.parameters - self.rank


def folded(jacobian: Tensor) -> Tensor:
    """The triangular factor of a Jacobian of more rows than columns: as far as sizes go the same map, and smaller."""
    rows, columns = jacobian.shape
    return torch.linalg.qr(jacobian, mode="r").R if rows > columns else jacobian


def spectrum(jacobian: Tensor) -> Spectrum:
    """The numerical rank of a Jacobian, `(outputs, parameters)`, or of its triangular factor.

    What follows the last singular value counts as rounding, so that full rank is a possible answer.
    """
    values = torch.linalg.svdvals(folded(jacobian))
    if not values[0] > 0:
        return Spectrum(jacobian.shape[1], 0, float("inf"), 0.0)
    values = values.clamp(min=values[0] * 1e-18)
    padded = torch.cat([values, values[:1] * 1e-17])
    falls = padded[:-1] / padded[1:]
    last = int(falls.argmax())
    return Spectrum(jacobian.shape[1], last + 1, float(falls[last]), float((padded[last] * padded[last + 1]).sqrt()))


def seen(jacobian: Tensor, directions: Tensor, level: float) -> int:
    """How many dimensions of the directions' span change the function, or are none: where directions coincide.

    Args:
        jacobian: `(outputs, parameters)`, or its triangular factor.
        directions: `(parameters, k)`.
        level: What is smaller is rounding.
    """
    count = directions.shape[1]
    if not count:
        return 0
    basis, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    independent = sizes > 1e-10 * sizes[0]
    return count - int(independent.sum()) + int((torch.linalg.svdvals(jacobian @ basis[:, independent]) > level).sum())
