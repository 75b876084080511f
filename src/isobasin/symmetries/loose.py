"""What rounding decides where a block's weights are brought into their canonical gauge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Loose:
    """What rounding decides in a block.

    Attributes:
        eps: Relative size of what counts as rounding: that of the stored type.
        choices: Those that it decides, in the order in which they were made, and the roles of the weights that they
            move: whoever makes the moves of these says which (`decide`).
    """

    eps: float
    choices: dict[str, set[str]] = field(default_factory=dict[str, set[str]])

    @property
    def names(self) -> list[str]:
        """Of the choices."""
        return list(self.choices)

    def check(self, name: str, undecided: Tensor) -> None:
        """Note a choice if it is undecided anywhere."""
        if bool(undecided.any()):
            self.choices.setdefault(name, set())

    def decide(self, choices: Iterable[str], roles: Iterable[str]) -> None:
        """Note what choices move, those that are noted or come from elsewhere."""
        moved = set(roles)
        for name in choices:
            self.choices.setdefault(name, set()).update(moved)

    def order(self, name: str, sizes: Tensor) -> Tensor:
        """Indices that sort by size, the largest first."""
        found = sizes.sort(-1, descending=True)
        self.check(name, -found.values.diff(dim=-1) <= self.eps * found.values[..., :1])
        return found.indices

    def phase(self, *columns: Tensor) -> Tensor:
        """Numbers of size 1, one for each column, that make `Σ x |x|²` positive; `(..., rows, n)` to `(..., n)`."""
        odd = sum((x * x.abs().square()).sum(-2) for x in columns) + torch.zeros_like(columns[0][..., 0, :])
        size = sum(x.abs().pow(3).sum(-2) for x in columns)
        self.check("signs", odd.abs() < self.eps * size)
        return torch.where(odd == 0, torch.ones_like(odd), odd.conj().resolve_conj().sgn())
