"""Coordinates on a model's symmetry group around the identity: what gradient descent moves.

All coordinates are 0 at the identity. Invertible maps are `exp(X)`, plane-wise scalings `exp(r + iφ)`, scales of units
and trades of gains `exp(l)`, rotations of latents and of the residual stream `exp(S - S^T)`, gains of its norms
`g exp(γ)`; shifts of biases are themselves. So every point is an element of the group, and a model's function is the
same at all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobasin.alignment import ATTENTION, FEEDFORWARD, STREAM, Alignment, AnyMove, Move, StreamMove, kind_of, named
from isobasin.alignment.stream import gains_of
from isobasin.model import Blocks
from isobasin.symmetries.along import Stream
from isobasin.symmetries.factor import Parts
from isobasin.symmetries.product import Product
from isobasin.symmetries.stream import Basis, StreamGroup, complement, lift


class Chart:
    """Coordinates around a model.

    Attributes:
        coordinates: By name, float64 leaves that need a gradient.
    """

    def __init__(
        self,
        model: Blocks,
        *,
        feedforward: bool,
        stream: Stream | None,
        device: str = "cpu",
    ) -> None:
        """All coordinates at 0.

        Args:
            model: Whose group it is.
            feedforward: Move feed-forward blocks too.
            stream: Its residual stream; None to leave that as it is.
            device: Where to compute.
        """
        self._model, self._stream, self._device = model, stream, device
        self._attentions = named(ATTENTION, model.specification.attention)
        self._feedforwards = named(FEEDFORWARD, model.feedforwards() if feedforward else ())
        self._norms = None if stream is None else gains_of(model, stream, device)
        sizes = dict(self._sizes())
        self.coordinates = {
            name: torch.zeros(size, dtype=torch.float64, device=device, requires_grad=True)
            for name, size in sizes.items()
            if 0 not in size
        }

    def _sizes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, group in self._groups():
            # What changes nothing on the line either, as the free shift of a key bias, has no coordinate.
            for factor in group.factors:
                for part, shape in () if factor.idle else factor.coordinates.items():
                    yield f"{name}.{part}", shape
        if self._stream is not None:
            group, norms = self._stream.group, self._stream.norms
            size = 0 if group.basis.discrete else group.width - (group.basis is Basis.centred)
            yield "stream.matrix", (size, size)
            yield "stream.gains", (len(norms), group.width)
            yield "stream.biases", (sum(norm.absorbed for norm in norms), group.width)

    def _groups(self) -> Iterator[tuple[str, Product[Any, Any]]]:
        for name, block in (*self._attentions, *self._feedforwards):
            yield name, block.group

    def _parts(self, name: str, group: Product[Any, Any]) -> Parts:
        """The parts of a block's element at the coordinates."""
        start = f"{name}."
        own = {part.removeprefix(start): x for part, x in self.coordinates.items() if part.startswith(start)}
        return {**group.identity((), self._device).tensors(), **group.charted(own)}

    def alignment(self) -> Alignment:
        """The group element at the coordinates, differentiable by them."""
        moves: list[AnyMove] = []
        if self._stream is not None and self._norms is not None:
            moves.append(self._turn(self._stream, *self._norms))
        for name, group in self._groups():
            moves.append(Move(name, group, kind_of(name).element(self._parts(name, group))))
        return Alignment(self._model.specification.model_type, tuple(moves), {"operation": "refine"})

    def element(self) -> Alignment:
        """The same without gradients, on the CPU, with the condition of every map."""
        with torch.no_grad():
            found = self.alignment()
            return replace(found, moves=tuple(move.having(move.element.to("cpu")) for move in found.moves))

    def _turn(self, plan: Stream, old_gains: Tensor, old_biases: Tensor) -> StreamMove:
        group = plan.group
        start = group.identity(old_gains, old_biases)
        gains, biases = self.coordinates.get("stream.gains"), self.coordinates.get("stream.biases")
        if gains is not None:
            start = replace(start, gains=start.gains * gains.exp())
        if biases is not None:
            which = torch.tensor([norm.absorbed for norm in plan.norms], device=biases.device)
            start = replace(start, biases=start.biases.index_add(0, which.nonzero().squeeze(-1), biases))
        matrix = self.coordinates.get("stream.matrix")
        if matrix is not None:
            start = replace(start, matrix=_map(group, matrix))
        return Move(STREAM, group, start)


def _map(group: StreamGroup, coordinates: Tensor) -> Tensor:
    """The residual stream's map at some coordinates."""
    if group.basis is Basis.linear:
        return torch.matrix_exp(coordinates)
    rotation = torch.matrix_exp(coordinates - coordinates.mT)
    return lift(rotation, complement(group.width, coordinates.device)) if group.basis is Basis.centred else rotation
