"""Which points of the line a descent looks at."""

from __future__ import annotations

import torch
from torch import Tensor

# Where points of the line are drawn: in the middle of so many parts of this interval. Most come from where the loss
# stands highest above the straight line between its ends, by a softmax at this temperature over moving averages.
_BINS = 13
_FIRST, _LAST = 0.08, 0.92
_TEMPERATURE = 0.03
_UNIFORM = 0.2
_DECAY = 0.9


class Points:
    """Draws points of the line, most where the loss stands highest above its ends.

    Everything is on the device of the losses, so that no step has to wait for one to be known.
    """

    def __init__(self, ends: tuple[float, float], device: str = "cpu") -> None:
        self._ends = ends
        self.excess = torch.zeros(_BINS, dtype=torch.float64, device=device)
        self.t = torch.linspace(_FIRST, _LAST, _BINS, dtype=torch.float64, device=device)
        self._each = torch.arange(_BINS, device=device)

    def draw(self, generator: torch.Generator) -> Tensor:
        """The index of a point."""
        likely = torch.softmax(self.excess / _TEMPERATURE, 0) * (1 - _UNIFORM) + _UNIFORM / _BINS
        # As torch.multinomial draws, but that its numbers are drawn on the CPU whatever the device is.
        waiting = torch.empty(_BINS, dtype=torch.float64).exponential_(generator=generator)
        return (likely / waiting.to(likely.device, non_blocking=True)).argmax()

    def tell(self, index: Tensor | int, loss: Tensor | float) -> None:
        """The loss that was found there."""
        first, last = self._ends
        new = _DECAY * self.excess + (1 - _DECAY) * (loss - ((1 - self.t) * first + self.t * last))
        self.excess = torch.where(self._each == index, new, self.excess)
