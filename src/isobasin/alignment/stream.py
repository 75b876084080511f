"""A model seen in another basis of its residual stream: the same function, tensor by tensor as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isobasin.alignment.moves import StreamMove
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.schema import Specification
from isobasin.errors import about
from isobasin.model import Blocks
from isobasin.symmetries import turning
from isobasin.symmetries.along import Stream


@dataclass(frozen=True, eq=False)
class Turned(Blocks):
    """A model after a move of its residual stream, in float64 as it is computed.

    Attributes:
        model: The model before it.
        plan: Where its stream runs.
        move: The move, on the device.
        device: Where it is computed.
    """

    model: Blocks
    plan: Stream
    move: StreamMove
    device: str = "cpu"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the user called the model."""
        return self.model.name

    @property
    def specification(self) -> Specification:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the tensors mean: the same as before."""
        return self.model.specification

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The stored type of every tensor of the model."""
        return self.model.dtypes()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        return self.model.shape(name)

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks of the model."""
        return self.model.feedforwards()

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream of the model."""
        return self.model.stream(keep_gains=keep_gains)

    @cached_property
    def _maps(self) -> turning.Maps:
        """What axes of each role are multiplied by."""
        return turning.maps(self.plan.group, self.move.element.matrix)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The moved tensors of these names; not more than one is held as it was, with what it passes through."""
        wanted = list(names)
        needed = {name: self.plan.needed([name]) for name in wanted}
        found: dict[str, Tensor] = {}
        # What a tensor passes through is moved with it, so that it comes first.
        for name in sorted(wanted, key=lambda name: -len(needed[name])):
            if name not in found:
                moved = self._moved(needed[name])
                found |= {other: moved[other] for other in needed[name] if other in needed}
        return {name: found[name] for name in wanted}

    def _moved(self, names: Sequence[str]) -> dict[str, Tensor]:
        """A tensor and all that passes through it."""
        stored, first = self.model.checked(names), names[0]
        pieces = list(self.plan.pieces(first, stored[first].shape))
        if len(pieces) == 1:
            return self._acted(stored)
        moved, whole = dict[str, Tensor](), torch.empty(stored[first].shape, dtype=torch.float64, device=self.device)
        for rows in pieces:
            moved = self._acted({**stored, first: stored[first][rows]})
            whole[rows] = moved[first]
        return {**moved, first: whole}

    def _acted(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = {name: tensor.to(self.device, torch.float64) for name, tensor in stored.items()}
        with about(self.name):
            return turning.act(self.plan, self.move.element, self._maps, tensors)


def gains_of(model: Blocks, stream: Stream, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The gains and biases of all folded normalisations in float64, `(norms, d)` each; no bias is 0."""
    width = stream.group.width
    gains = torch.ones(len(stream.norms), width, dtype=torch.float64, device=device)
    biases = torch.zeros_like(gains)
    for index, norm in enumerate(stream.norms):
        gains[index] = norm.gains(model.double([norm.gain], device))
        if norm.bias is not None:
            biases[index] = model.double([norm.bias], device)[norm.bias]
    return gains, biases
