"""A model seen in another basis of its residual stream: the same function, tensor by tensor as they are asked for.

With own gains g and biases n, new ones g' and n', and the map T, what reads a folded normalisation becomes

    W' = diag(1/g') T^{-1} diag(g) W,      b' = b + n W - n' W',

where W has shape (in, out); what writes moves as `W T`, or, where a factor g of its output is folded into it, as
`W diag(g) T diag(1/g')`. Where a reader has no bias, n moves along the stream instead, `n' = g' * ((n / g) T)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.schema import Specification
from isobasin.errors import TensorError
from isobasin.model import Blocks
from isobasin.symmetries.along import Along, Norm, Reader, Role, Stream, role_maps
from isobasin.symmetries.stream import StreamElement, contract, move_axis, scale_axis


@dataclass(frozen=True, eq=False)
class Turned(Blocks):
    """A model after a move of its residual stream, in float64 as it is computed.

    Attributes:
        model: The model before it.
        plan: Where its stream runs.
        element: The move.
        device: Where it is computed.
    """

    model: Blocks
    plan: Stream
    element: StreamElement
    device: str = "cpu"
    _maps: Mapping[Role, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        element = self.element.to(self.device)
        object.__setattr__(self, "element", element)
        object.__setattr__(self, "_maps", role_maps(self.plan.group, element.matrix))

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
        made: dict[str, Tensor] = {}
        for name in names:
            made[name] = self._moved(name, made)
        return made

    def _moved(self, name: str, made: Mapping[str, Tensor]) -> Tensor:
        """One moved tensor; of those that are made already, a bias takes its weight."""
        for index, norm in enumerate(self.plan.norms):
            if name == norm.gain:
                return self.element.gains[index] - norm.offset
            if name == norm.bias:
                return self._bias(index, norm)
            for reader in norm.readers:
                if name == reader.weight:
                    return self._folded(index, norm, Along(name, reader.axis, Role.covector))
                if name == reader.bias:
                    return self._reader_bias(index, norm, reader, name, made.get(reader.weight))
            for writer in norm.writers:
                if name == writer.tensor:
                    return self._folded(index, norm, writer)
        return self._along(name, self._own(name))

    def _along(self, name: str, tensor: Tensor) -> Tensor:
        """What a tensor becomes along all its axes that hold no gain."""
        for item in self.plan.along:
            if item.tensor == name:
                tensor = move_axis(self._maps[item.role], tensor, item.axis)
        return tensor

    def _own(self, name: str) -> Tensor:
        """A tensor of the model as it was."""
        return self.model.double([name], self.device)[name]

    def _gains(self, norm: Norm) -> Tensor:
        """A normalisation's gains as they were."""
        return norm.gains({norm.gain: self._own(norm.gain)})

    def _folded(self, index: int, norm: Norm, item: Along) -> Tensor:
        """What holds a gain: the old one folded in, and the new one taken out after the move."""
        moved = move_axis(
            self._maps[item.role], scale_axis(self._gains(norm), self._own(item.tensor), item.axis), item.axis
        )
        return self._along(item.tensor, scale_axis(1 / self.element.gains[index], moved, item.axis))

    def _reader_bias(self, index: int, norm: Norm, reader: Reader, name: str, weight: Tensor | None) -> Tensor:
        bias = self._own(name)
        if norm.bias is None:
            return self._along(name, bias)
        before = contract(self._own(norm.bias), self._own(reader.weight), reader.axis)
        along = Along(reader.weight, reader.axis, Role.covector)
        moved = self._folded(index, norm, along) if weight is None else weight
        return self._along(name, bias + before) - contract(self._bias(index, norm), moved, reader.axis)

    def _bias(self, index: int, norm: Norm) -> Tensor:
        """The normalisation's new bias n'."""
        if norm.absorbed:
            return self.element.biases[index]
        assert norm.bias is not None
        return self.element.gains[index] * (
            offset(norm, self._gains(norm), self._own(norm.bias), self.name) @ self.element.matrix
        )

    def rest(self, done: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """The moved tensors that are not among these names, one at a time."""
        for name in sorted(self.plan.names() - set(done)):
            yield self.read([name])


def offset(norm: Norm, gain: Tensor, bias: Tensor, name: str) -> Tensor:
    """The vector n / g of a normalisation whose bias moves along the stream.

    Raises:
        TensorError: A gain is 0 where the bias isn't: then the stream holds no such vector.
    """
    lost = (gain == 0) & (bias != 0)
    if bool(lost.any()):
        where = int(lost.nonzero()[0, 0])
        raise TensorError(
            f"{name}: {norm.gain!r} is 0 at {where} and {norm.bias!r} is not: the residual stream can't be moved, use "
            "--scope block"
        )
    return torch.where(bias == 0, torch.zeros_like(bias), bias / gain)


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
