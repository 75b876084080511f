"""Tables of relative position biases: what softmax lets pass.

A query sees the entries of one number only, and softmax cancels what is added to all of them. One constant is free for
most tables; where special tokens have entries of their own, two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.shift import Shift


@dataclass(frozen=True)
class Tables(Shift):
    """The constants of every query head's table.

    Attributes:
        numbers: For each entry the number of the constant that it shares.
    """

    numbers: tuple[int, ...] = ()

    def direction(self, shift: Tensor) -> Tensor:
        """Every constant at all of its entries."""
        return shift[..., list(self.numbers)]

    def measured(self, weight: Tensor) -> Tensor:
        """The mean of the entries of every number, `(..., constants)`."""
        member = torch.nn.functional.one_hot(torch.tensor(self.numbers, device=weight.device)).to(weight)
        return weight @ (member / member.sum(0))

    def unshifted(self, table: Tensor) -> Tensor:
        """A table less those means: what no shift changes."""
        return table - self.direction(self.measured(table))

    def __str__(self) -> str:
        return f"R^{self.shape[-2] * self.shape[-1]} (position biases)"
