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

import torch
from torch import Tensor

from isobasin.errors import TensorError
from isobasin.symmetries.along import Norm, Role, Stream
from isobasin.symmetries.stream import Basis, Placing, StreamElement, StreamGroup, contract, move_axis, scale_axis

Tensors = dict[str, Tensor]


Maps = Mapping[Role, Tensor | Placing]
"""What axes of each role are multiplied by, as `move_axis` does it."""


def maps(group: StreamGroup, matrix: Tensor) -> Maps:
    """What they are multiplied by where the stream moves by `matrix`."""
    if group.basis.discrete:
        placing = Placing.of(matrix)
        bare = Placing(placing.order, placing.factors.abs())
        return {Role.vector: placing, Role.covector: placing, Role.gain: bare}
    back = torch.linalg.inv(matrix).mT if group.basis is Basis.linear else matrix
    return {Role.vector: matrix, Role.covector: back, Role.gain: matrix.abs()}


def act(stream: Stream, element: StreamElement, by_role: Maps, tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors after a move of the stream, in the gains and biases that the element has.

    Args:
        stream: Where it runs.
        element: The move.
        by_role: The `maps` of its matrix.
        tensors: Some in float64 by name, with all that these need (`Stream.needed`).

    Raises:
        TensorError: A gain is 0 where a bias has to move along the stream.
    """
    places, own = stream.part(tensors)
    gains, biases = element.gains[places], element.biases[places]
    return unfold(own, gains, biases, turn(own, by_role, fold(own, tensors)))


def fold(stream: Stream, tensors: Mapping[str, Tensor], *, own: bool = False) -> Tensors:
    """Normalisations folded into their readers, and factors of what blocks return taken into its writers.

    Gains and biases are not there then, but for a bias that moves along the stream, as `n / g`.

    Args:
        stream: Where it runs.
        tensors: Some by name, with all that these need.
        own: Whether these are the caller's own, so that they may be changed: nothing new is asked of the system then.

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
    for norm in stream.norms:
        for item in norm.scaled:
            if item.tensor in new:
                new[item.tensor] = scale_axis(norm.gains(tensors), new[item.tensor], item.axis, own=own)
        new.pop(norm.gain, None)
    return new


def turn(stream: Stream, by_role: Maps, tensors: Mapping[str, Tensor]) -> Tensors:
    """Folded tensors in another basis of the stream, by its `maps`."""
    new = dict(tensors)
    for item in stream.axes():
        if item.tensor in new:
            new[item.tensor] = move_axis(by_role[item.role], new[item.tensor], item.axis)
    return new


def unfold(stream: Stream, all_gains: Tensor, all_biases: Tensor, tensors: Mapping[str, Tensor]) -> Tensors:
    """Other gains and biases, `(norms, d)`, taken out of folded tensors, and given to the normalisations."""
    new = dict(tensors)
    for norm, gains, bias in zip(stream.norms, all_gains, all_biases, strict=True):
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
