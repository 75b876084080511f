"""What rounding to the nearest makes of weights, by format: one scale for a group of inputs of an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from isobasin.bounds import MANY, check_number
from isobasin.choices import Rounding
from isobasin.errors import IsobasinError

# The least and the largest number that E4M3, the type of NVFP4's scales, stores without losing bits.
_E4M3 = torch.finfo(torch.float8_e4m3fn)
# The largest number of E2M1, and the power of two below it.
_LARGEST, _POWER = 6.0, 4.0
# What an all-zero group is divided by.
_TINY = 1e-30


@dataclass(frozen=True)
class Quantiser:
    """Rounds matrices, outputs first, to the numbers of a format times a scale for every group of inputs.

    Attributes:
        rounding: The format.
        group: How many inputs of an output share a scale, the last ones perhaps fewer; None: all.
    """

    rounding: Rounding
    group: int | None

    @classmethod
    def of(cls, rounding: Rounding | str, group: int | None = None) -> Quantiser:
        """A quantiser; groups of the formats of floating-point numbers are as their standards say.

        Args:
            rounding: The format.
            group: Inputs that share a scale, for integers; None: 32 for two bits, all for more; 0: all.

        Raises:
            IsobasinError: The format has groups of its own, or there is no such size.
        """
        rounding = Rounding(rounding)
        if rounding not in _FLOATS:
            if group is None:
                return cls(rounding, 32 if rounding is Rounding.rtn2 else None)
            check_number("group", group, 0, MANY)
            return cls(rounding, group or None)
        if group is not None:
            raise IsobasinError(f"group is {group}, and {rounding} has groups of {_FLOATS[rounding]}: leave it out")
        return cls(rounding, _FLOATS[rounding])

    def __call__(self, matrix: Tensor) -> Tensor:
        """The rounded matrix, `(..., outputs, inputs)`.

        Its derivative is that of `scale * code` where the distance of each value from its code counts as constant: what
        lies between codes passes straight through, and a smaller scale rounds less.
        """
        inputs = matrix.shape[-1]
        size = min(self.group or inputs, inputs)
        x = functional.pad(matrix, (0, -inputs % size)).unflatten(-1, (-1, size))
        largest = x.abs().amax(-1, keepdim=True)
        with torch.no_grad():
            scale = self._scale(largest).clamp(min=_TINY)
            # As tools compute it: the largest of a group may lie half-way between two codes.
            shares = x * (1 / scale)
            codes = self._codes(shares)
            slope = (codes - shares) * scale / largest.clamp(min=_TINY)
        rounded = codes * scale
        if matrix.requires_grad:
            rounded = rounded + (x - x.detach()) + slope * (largest - largest.detach())
        return rounded.flatten(-2)[..., :inputs]

    def _scale(self, largest: Tensor) -> Tensor:
        """The scales of groups by their largest sizes, `(..., groups, 1)`."""
        if self.rounding is Rounding.mxfp4:
            return _power_below(largest.clamp(min=_TINY)) / _POWER
        if self.rounding is Rounding.nvfp4:
            whole = (largest.amax((-3, -2), keepdim=True) / (_E4M3.max * _LARGEST)).clamp(min=_TINY)
            inside = (largest / _LARGEST / whole).clamp(_E4M3.tiny, _E4M3.max)
            return inside.to(torch.float8_e4m3fn).to(largest.dtype) * whole
        # Divided by a tensor: by a number a GPU multiplies with its inverse, and the largest of a group then lies on
        # the other side of the middle between two codes.
        return largest / torch.full_like(largest, 2 ** (self._bits - 1) - 0.5)

    def _codes(self, x: Tensor) -> Tensor:
        """The nearest number that is stored, of two the even one."""
        if self.rounding not in _FLOATS:
            half = 2 ** (self._bits - 1)
            return x.round().clamp(-half, half - 1)
        # E2M1 has the numbers 0, ½, 1, 1½, 2, 3, 4 and 6: steps of a half up to 2, of one up to 4, and then of two.
        step = _power_below(x.abs().clamp(1, _POWER)) / 2
        return ((x / step).round() * step).clamp(-_LARGEST, _LARGEST)

    @property
    def _bits(self) -> int:
        return int(self.rounding.removeprefix("rtn"))

    def __str__(self) -> str:
        return f"{self.rounding}, {'a scale per output' if self.group is None else f'groups of {self.group}'}"


def _power_below(x: Tensor) -> Tensor:
    """The largest powers of two that are not above some positive numbers."""
    return torch.ldexp(torch.ones_like(x), x.frexp().exponent - 1)


_FLOATS = {Rounding.mxfp4: 32, Rounding.nvfp4: 16}

Rounds = Callable[[Tensor], Tensor]
"""What makes a rounded matrix of one, outputs first."""
