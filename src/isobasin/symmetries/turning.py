"""The action of the residual stream's group on a model's tensors.

Normalisations are folded, the basis is turned, and other gains and biases are taken out again. With own gains g and
biases n, new ones g' and n', and the map T, what reads a normalisation becomes

    W' = diag(1/g') T^{-1} diag(g) W,      b' = b + n W - n' W',

where W has shape (in, out); what writes moves as `W T`, or, where a factor g multiplies what it writes, as
`W diag(g) T diag(1/g')`. Where a reader has no bias, n moves along the stream instead, `n' = g' * ((n / g) T)`, and
all biases stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.errors import TensorError
from isobasin.symmetries.along import Norm, Role, Stream
from isobasin.symmetries.stream import Basis, StreamElement, StreamGroup, contract, move_axis, scale_axis

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class StreamWeights:
    """Tensors that a residual stream runs through.

    Attributes:
        stream: Where it does.
        values: Some of them in float64 by name, with all that these need (`Stream.needed`).
    """

    stream: Stream
    values: Mapping[str, Tensor]

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return self.values

    def moved(self, element: StreamElement) -> StreamWeights:
        """The tensors after a move of the stream, in the gains and biases that the element has.

        Raises:
            TensorError: A gain is 0 where a bias has to move along the stream.
        """
        turned = turn(self.stream, element.matrix, fold(self.stream, self.values))
        return replace(self, values=_unfold(self.stream, element, turned))


def fold(stream: Stream, tensors: Mapping[str, Tensor]) -> Tensors:
    """Normalisations folded into their readers, and factors of what blocks return taken into its writers.

    Gains and biases are not there then, but for a bias that moves along the stream, as `n / g`.

    Raises:
        TensorError: A gain is 0 where such a bias is not.
    """
    new = dict(tensors)
    for norm in stream.norms:
        if norm.absorbed and norm.bias is not None:
            for reader in norm.readers:
                if reader.bias in new:
                    passed = contract(tensors[norm.bias], tensors[reader.weight], reader.axis)
                    new[reader.bias] = new[reader.bias] + passed
            new.pop(norm.bias, None)
        elif norm.bias in new:
            new[norm.bias] = _offset(norm, norm.gains(tensors), new[norm.bias])
        for item in norm.scaled:
            if item.tensor in new:
                new[item.tensor] = scale_axis(norm.gains(tensors), new[item.tensor], item.axis)
        new.pop(norm.gain, None)
    return new


def turn(stream: Stream, matrix: Tensor, tensors: Mapping[str, Tensor]) -> Tensors:
    """Folded tensors in another basis of the stream."""
    axes = [item for item in stream.axes() if item.tensor in tensors]
    maps = {role: _map(stream.group, matrix, role) for role in {item.role for item in axes}}
    new = dict(tensors)
    for item in axes:
        new[item.tensor] = move_axis(maps[item.role], new[item.tensor], item.axis)
    return new


def _map(group: StreamGroup, matrix: Tensor, role: Role) -> Tensor:
    """What an axis of a role is multiplied by where the stream moves by `matrix`, as `move_axis` does it."""
    if role is Role.gain:
        return matrix.abs()
    return torch.linalg.inv(matrix).mT if role is Role.covector and group.basis is Basis.linear else matrix


def _unfold(stream: Stream, element: StreamElement, tensors: Mapping[str, Tensor]) -> Tensors:
    """The element's gains and biases taken out of folded tensors, and given to the normalisations."""
    new = dict(tensors)
    for norm, gains, bias in zip(stream.norms, element.gains, element.biases, strict=True):
        for item in norm.scaled:
            if item.tensor in new:
                new[item.tensor] = scale_axis(1 / gains, new[item.tensor], item.axis)
        new[norm.gain] = gains - norm.offset
        if norm.absorbed and norm.bias is not None:
            new[norm.bias] = bias
            for reader in norm.readers:
                if reader.bias in new:
                    new[reader.bias] = new[reader.bias] - contract(bias, new[reader.weight], reader.axis)
        elif norm.bias in new:
            new[norm.bias] = gains * new[norm.bias]
    return new


def _offset(norm: Norm, gain: Tensor, bias: Tensor) -> Tensor:
    """The vector n / g of a normalisation whose bias moves along the stream."""
    lost = (gain == 0) & (bias != 0)
    if bool(lost.any()):
        where = int(lost.nonzero()[0, 0])
        raise TensorError(
            f"{norm.gain!r} is 0 at {where} and {norm.bias!r} is not: the residual stream can't be moved, use "
            "--scope block"
        )
    return torch.where(bias == 0, torch.zeros_like(bias), bias / gain)
