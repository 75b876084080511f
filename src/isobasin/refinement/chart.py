"""Coordinates on a model's symmetry group around the identity: what gradient descent moves.

All coordinates are 0 at the identity. Invertible maps are `exp(X)`, plane-wise scalings `exp(r + iφ)`, scales of units
and trades of gains `exp(l)`, rotations of latents and of the residual stream `exp(S - S^T)`, gains of its norms
`g exp(γ)`; shifts of biases are themselves. So every point is an element of the group, and a model's function is the
same at all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import ATTENTION, FEEDFORWARD, STREAM, Alignment, AnyMove, Move, kind_of, named
from isobasin.alignment.stream import gains_of
from isobasin.model import Blocks
from isobasin.refinement.stacks import Turn, pieces, stacked
from isobasin.symmetries import turning
from isobasin.symmetries.along import Stream
from isobasin.symmetries.exponential import exponential
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.product import Product
from isobasin.symmetries.stream import Basis, StreamElement, StreamGroup, complement, lift

# Names of the stream's coordinates.
MATRIX, GAINS, BIASES = "stream.matrix", "stream.gains", "stream.biases"


class Chart:
    """Coordinates around a model.

    Those of blocks that are alike are one tensor, `(layers, ...)`, under the name of the first: a step of descent has
    few, large operations. They and the tensors that they move are in single precision, unless the model isn't: only
    what is learned counts, and the element that is read from them in the end is exact.

    Attributes:
        coordinates: By name, leaves that need a gradient.
    """

    def __init__(
        self,
        model: Blocks,
        *,
        feedforward: bool,
        stream: Stream | None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
        stretching: float = 1.0,
    ) -> None:
        """All coordinates at 0.

        Args:
            model: Whose group it is.
            feedforward: Move feed-forward blocks too.
            stream: Its residual stream; None to leave that as it is.
            device: Where to compute.
            dtype: Of coordinates and moved tensors.
            stretching: The share of coordinates that counts, of all that rotates nothing: a step of descent, as long in
                each of them, stretches and shifts by as much less than it turns.
        """
        self._model_type, self._stream = model.specification.model_type, stream
        blocks = [*named(ATTENTION, model.specification.attention)]
        blocks += named(FEEDFORWARD, model.feedforwards() if feedforward else ())
        self._groups: dict[str, Product[Any, Any]] = {move: block.group for move, block in blocks}
        self._norms = None if stream is None else gains_of(model, stream, device)
        self._stacks = stacked(model, pieces(blocks, stream), dtype, device, stretching)
        self.coordinates = {
            f"{stack.pieces[0].move}.{part}": x for stack in self._stacks for part, x in stack.coordinates.items()
        }
        for name, size in {} if stream is None else _sizes(stream).items():
            if 0 not in size:
                self.coordinates[name] = torch.zeros(size, dtype=dtype, device=device, requires_grad=True)
        absorbed = [] if stream is None else [place for place, norm in enumerate(stream.norms) if norm.absorbed]
        # On the device, where a step would otherwise wait for them.
        self._absorbed = torch.tensor(absorbed, dtype=torch.int64, device=device)
        self._dtype, self._stretching = dtype, stretching

    @property
    def rotates(self) -> bool:
        """Whether the coordinates of the stream's map are those of a rotation."""
        return self._stream is not None and self._stream.group.basis is not Basis.linear

    def tensors(self) -> dict[str, Tensor]:
        """All that moves by name, at the coordinates, differentiable by them."""
        return self._moved(None if self._stream is None else self._turned(self._stream, self._dtype))

    def bare(self) -> dict[str, Tensor]:
        """The same where normalisations have gains 1 and biases 0, as far as these are free."""
        if self._stream is None:
            return self._moved(None)
        turned = self._turned(self._stream, self._dtype)
        return self._moved(replace(turned, gains=torch.ones_like(turned.gains), biases=torch.zeros_like(turned.biases)))

    def returned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `tensors()` returns, or other values of the same, moved back to coordinates 0, as `bare` has it there.

        Normalisations, which are folded then, are not among it.
        """
        back = None
        if self._stream is not None:
            group, element = self._stream.group, self._turned(self._stream, self._dtype)
            back = turning.maps(group, group.inverse(element).matrix)
        return {name: x for stack in self._stacks for name, x in stack.returned(back, dict(tensors)).items()}

    def _moved(self, element: StreamElement | None) -> dict[str, Tensor]:
        """All that moves, at the coordinates, after an element of the stream."""
        turn = None
        if element is not None:
            assert self._stream is not None
            turn = Turn(turning.maps(self._stream.group, element.matrix), element.gains, element.biases)
        return {name: x for stack in self._stacks for name, x in stack.moved(turn).items()}

    @torch.no_grad()
    def element(self) -> Alignment:
        """The group element at the coordinates, exact and on the CPU, with the condition of every map."""
        own: dict[str, Parts] = {}
        for stack in self._stacks:
            point = stack.point
            for layer, piece in enumerate(stack.pieces):
                own[piece.move] = {part: x[layer].double() for part, x in point.items()}
        moves: list[AnyMove] = []
        if self._stream is not None:
            moves.append(Move(STREAM, self._stream.group, self._turned(self._stream, torch.float64)))
        for name, group in self._groups.items():
            parts = {**group.identity().tensors(), **group.charted(own[name])}
            moves.append(Move(name, group, kind_of(name).element(parts)))
        exact = tuple(move.having(move.element.to("cpu")) for move in moves)
        return Alignment(self._model_type, exact, {"operation": "refine"})

    def _turned(self, plan: Stream, dtype: torch.dtype) -> StreamElement:
        """The stream's element in a type."""
        assert self._norms is not None
        gains, biases = (x.to(dtype) for x in self._norms)
        start = plan.group.identity(gains, biases)
        found = {name: self.coordinates[name].to(dtype) for name in _sizes(plan) if name in self.coordinates}
        slowed = found.keys() - ({MATRIX} if self.rotates else set())
        found |= {name: self._stretching * found[name] for name in slowed if self._stretching != 1}
        if GAINS in found:
            start = replace(start, gains=start.gains * found[GAINS].exp())
        if BIASES in found:
            start = replace(start, biases=start.biases.index_add(0, self._absorbed, found[BIASES]))
        matrix = _map(plan.group, found[MATRIX]) if MATRIX in found else start.matrix.to(dtype)
        return replace(start, matrix=matrix)


def _sizes(stream: Stream) -> dict[str, tuple[int, ...]]:
    """Shapes of the coordinates of a stream's moves."""
    group, norms = stream.group, stream.norms
    size = 0 if group.basis.discrete else group.width - (group.basis is Basis.centred)
    return {
        MATRIX: (size, size),
        GAINS: (len(norms), group.width),
        BIASES: (sum(norm.absorbed for norm in norms), group.width),
    }


def _map(group: StreamGroup, coordinates: Tensor) -> Tensor:
    """The residual stream's map at some coordinates."""
    if group.basis is Basis.linear:
        return exponential(coordinates)
    rotation = exponential(coordinates - coordinates.mT)
    basis = complement(group.width, coordinates.device).to(coordinates.dtype)
    return lift(rotation, basis) if group.basis is Basis.centred else rotation
