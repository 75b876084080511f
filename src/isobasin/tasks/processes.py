"""Several processes that `accelerate launch` or torchrun started, and one alone alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Group:
    """The processes that share a piece of work, of which this is one.

    Attributes:
        count: How many they are.
        rank: The number of this one, from 0.
        first: Whether it is the first, which writes.
    """

    def __init__(self, accelerator: Any = None) -> None:
        """Take an `accelerate.Accelerator`, or None for this process alone."""
        self._accelerator = accelerator
        self.count = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self.first = self.rank == 0

    def device(self, alone: str | torch.device) -> str:
        """Where this process computes: the place that accelerate gave it, or that of a process alone."""
        place = torch.device(alone) if self._accelerator is None else self._accelerator.device
        # To torch "cpu:0", as accelerate says, is another place than "cpu": models would be copied every time.
        return "cpu" if place.type == "cpu" else str(place)

    def gathered(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows of all processes, in the order of their first entries, the same in every process."""
        if self.count > 1:
            from accelerate.utils import gather_object

            rows = gather_object(rows)
        return sorted(rows, key=lambda row: row[0])

    def once(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, in every process."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        found = [make() if self.first else None]
        made: Any = broadcast_object_list(found)[0]
        return made

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Put the weighted mean over all processes into tensors of one type, each process having its own weight."""
        if self.count == 1:
            return
        # A share without weight has no mean of its own: whatever stands there, 0 / 0 among it, doesn't count.
        shares = [x.reshape(-1) * weight if weight else torch.zeros_like(x).reshape(-1) for x in tensors]
        total: Tensor = self._accelerator.reduce(torch.cat([*shares, shares[0].new_full((1,), weight)]), "sum")
        means = (total[:-1] / total[-1]).split([x.numel() for x in tensors])
        for x, mean in zip(tensors, means, strict=True):
            x.copy_(mean.view_as(x))
