"""Whether forward passes in bfloat16 are quicker, and which attention is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isobasin.loading import quiet_transformers
from isobasin.matching.products import multiplies_bfloat16

# From this width on the products gain more than the casts cost.
_WIDE = 64
# Up to this many tokens. At 1024 torch's own takes two thirds of the time, and doesn't hold every score.
_SHORT = 256


def quicker_in_bfloat16(parameters: Iterable[Tensor], device: str) -> bool:
    """Whether a device multiplies bfloat16, and a model is wide enough for that to count.

    Args:
        parameters: Of the model.
        device: Where it is computed.
    """
    widest = max((min(x.shape[-2:]) for x in parameters if x.ndim > 1), default=0)
    return widest >= _WIDE and multiplies_bfloat16(torch.device(device).type)


class ShortAttention:
    """Attention written out, over short texts, where a module in bfloat16 on a CPU runs torch's own else.

    What torch's own does backward there takes three to ten times as long as the products and the softmax by themselves.
    """

    def __init__(self, module: Any) -> None:
        """For a module of transformers; one that is without torch's own attention stays as it is."""
        self._module, self._has = module, module.config._attn_implementation
        self._fixed = self._has != "sdpa"

    def fit(self, length: int) -> None:
        """Choose by the number of tokens that the next pass has."""
        wanted = "eager" if length <= _SHORT else "sdpa"
        if self._fixed or wanted == self._has:
            return
        with quiet_transformers():  # one whose class can't choose says so, and goes on
            self._module.set_attn_implementation(wanted)
        self._has = wanted
