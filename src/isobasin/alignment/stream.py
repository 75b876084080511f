"""A model seen in another basis of its residual stream: the same function, tensor by tensor as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.alignment.moves import StreamMove
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.schema import Specification
from isobasin.errors import about
from isobasin.model import Blocks
from isobasin.symmetries.along import Stream
from isobasin.symmetries.turning import StreamWeights


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

    def size(self, name: str) -> int:
        """Number of values of a tensor."""
        return self.model.size(name)

    def feedforwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks of the model."""
        return self.model.feedforwards()

    def stream(self, *, keep_gains: bool = False) -> Stream:
        """The residual stream of the model."""
        return self.model.stream(keep_gains=keep_gains)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The moved tensors of these names."""
        wanted = list(names)
        weights = StreamWeights(self.plan, self.model.double(self.plan.needed(wanted), self.device))
        with about(self.name):
            moved = self.move.act(weights).values
        return {name: moved[name] for name in wanted}


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
