"""The assignment of rows whose partners are plain to see, without the costs of all pairs.

Whatever the scales s of a unit's branches, `||x - s y||² >= ||x||² (1 - cos²)`, branch by branch. Where that leaves no
other unit as near as the one whose cosines are largest, a unit has the partner of least cost, and if all of them have
one of their own, no assignment costs less. Cosines are float32's and what these may be wrong by; one branch is often
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from isobasin.matching.products import dots, pieces, with_rows

# Pairs of rows whose cosines are held at once.
_PAIRS = 2**20
# Of the units, as many may be in doubt: they are then assigned by the costs of all their pairs. And of those that were
# looked at so far.
_IN_DOUBT, _SO_FAR = 1 / 16, 1 / 2

Rows = Mapping[str, Tensor]
"""The branches of units, `(f, n)` each, by name."""


def plain_partners(a: Rows, b: Rows, distances: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Which unit of the model is nearer than any other to each of the reference's.

    Args:
        a: The reference's units, float64.
        b: The model's.
        distances: The least squared distances, over scales, of some units of the reference and as many of the model,
            by their numbers.

    Returns:
        The partners `(f,)`, and the numbers of units that are in doubt or want the same one; None where too many are.
    """
    units, device = len(a["up"]), a["up"].device
    squares = {name: dots(rows, rows) for name, rows in a.items()}
    theirs = {name: with_rows(torch.cat([_unit(part).float() for part in pieces(rows)])) for name, rows in b.items()}
    partners = torch.zeros(units, dtype=torch.int64, device=device)
    doubtful = torch.zeros(units, dtype=torch.bool, device=device)
    for rows in torch.arange(units, device=device).split(max(1, _PAIRS // units)):
        seen = int(rows[-1]) + 1
        score, least = torch.zeros((), device=device), torch.zeros((), device=device)
        for name, own in squares.items():
            cosines = theirs[name](_unit(a[name][rows]))
            # More than sums of so many products and their squares may be wrong by.
            blur = (a[name].shape[-1] + 8) * torch.finfo(cosines.dtype).eps
            score = score + cosines.abs_().add_(blur).square_().mul_(own[rows, None])
            least = least + own[rows]
            first = score.argmax(-1)
            second = score.scatter(-1, first[:, None], -torch.inf).amax(-1)
            partners[rows] = first
            open_ = ~(distances(rows, first) < least - second)
            rows, score, least = rows[open_], score[open_], least[open_]
            if not len(rows):
                break
        doubtful[rows] = True
        if int(doubtful.sum()) > min(_IN_DOUBT * units, _SO_FAR * seen):
            return None
    doubtful |= partners[~doubtful].bincount(minlength=units)[partners] > 1
    rest = doubtful.nonzero().squeeze(-1)
    return None if len(rest) > _IN_DOUBT * units else (partners, rest)


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; zeros stay."""
    return torch.nn.functional.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)
