"""A model of which everything takes part: no row of a table, no expert and no unit is left out by the inputs.

A few random texts look up a few rows of a table of tokens or positions, choose some experts, and leave some units of
ReLU at zero. Whatever the files have elsewhere then changes no output. Opened, the same weights compute something else
that depends on all of them: a look-up returns a blend of rows, all of which have a share in one of the look-ups; every
expert is chosen, for equal shares; and ReLU lets everything through. Every move that leaves the function as it is
leaves this as it is too: maps of the residual stream are linear, and what is added to all rows of a table is added to a
blend, whose shares add up to one; experts and units are permuted, and scaled by positive numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Opened(TorchFunctionMode):
    """Within it everything takes part, in the thread that entered it.

    Attributes:
        tables: Those of which blends were returned, by identity.
        differs: Whether anything was opened: else what was computed is what the model computes.
        chooses: Whether experts are chosen.
    """

    def __init__(self, seed: int) -> None:
        """Shares are drawn by this seed."""
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self.tables: set[int] = set()
        self.differs = self.chooses = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute what an operation of torch computes, but for those three."""
        given = dict(kwargs or {})
        if func in (functional.relu, torch.relu, Tensor.relu):
            self.differs = True
            return args[0] if args else given["input"]
        if func in (torch.topk, Tensor.topk):
            self.differs = self.chooses = True
            values, dim = args[0], given.get("dim", -1)
            chosen = func(values, values.shape[dim], dim)
            return chosen.values.new_full(chosen.values.shape, 1 / values.shape[dim]), chosen.indices
        if func is functional.embedding:
            return self._looked_up(*args, **given)
        return func(*args, **given)

    def _looked_up(self, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        """The rows that are asked for if those are all, else as many blends in which every row has a share.

        Args:
            input: The numbers of rows.
            weight: The table.
        """
        asked, rows = input.numel(), len(weight)
        # Tables of biases are looked up by pairs of positions, `(t, t)`: texts are long enough to reach all of them.
        if (input.ndim > 1 and input.shape[0] == input.shape[-1]) or len(input.unique()) == rows:
            return functional.embedding(input, weight)
        self.tables.add(id(weight))
        self.differs = True
        each = -(-rows // asked)
        order = torch.cat([torch.randperm(rows, generator=self._generator) for _ in range(-(-asked * each // rows))])
        shares = torch.randn(asked, each, generator=self._generator, dtype=torch.float64)
        shares = (shares - shares.mean(-1, keepdim=True)) / each**0.5 + 1 / each
        chosen = order[: asked * each].view(asked, each).to(input.device)
        blends = functional.embedding_bag(chosen, weight, mode="sum", per_sample_weights=shares.to(weight))
        return blends.view(*input.shape, -1)
