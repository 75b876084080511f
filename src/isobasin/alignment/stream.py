"""A model seen in another basis of its residual stream: the same function, tensor by tensor as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isobasin.alignment.moves import StreamMove
from isobasin.checkpoints import InRows, Value
from isobasin.errors import about
from isobasin.memory import carried
from isobasin.model import Blocks, Revalued
from isobasin.symmetries import turning
from isobasin.symmetries.along import Stream


@dataclass(frozen=True, eq=False)
class Turned(Revalued):
    """A model after a move of its residual stream, in float64 as it is computed.

    Attributes:
        plan: Where its stream runs.
        move: The move, on the device.
        device: Where it is computed.
    """

    plan: Stream
    move: StreamMove
    device: str = "cpu"

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
                moved = _moved(self, needed[name])
                found |= {other: whole(moved[other]) for other in needed[name] if other in needed}
        return {name: found[name] for name in wanted}

    def acted(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Some of its tensors after the move, with all that these need (`Stream.needed`)."""
        tensors = {name: carried(tensor, self.device, torch.float64) for name, tensor in stored.items()}
        with about(self.name):
            return turning.act(self.plan, self.move.element, self._maps, tensors)


def in_rows(turned: Turned, name: str) -> Value:
    """One moved tensor, a long one in rows."""
    return _moved(turned, turned.plan.needed([name]))[name]


def _moved(turned: Turned, names: Sequence[str]) -> dict[str, Value]:
    """A tensor, and all that it passes through."""
    stored, first = turned.model.checked(names), names[0]
    pieces = list(turned.plan.pieces(first, stored[first].shape))
    if len(pieces) == 1:
        return {**turned.acted(stored)}

    def some(rows: slice) -> dict[str, Tensor]:
        return turned.acted({**stored, first: stored[first][rows]})

    def all_rows() -> Iterator[Tensor]:
        return (some(rows)[first] for rows in pieces)

    return {**some(slice(1)), first: InRows(tuple(stored[first].shape), all_rows)}


def whole(value: Value) -> Tensor:
    """A tensor at once."""
    return value if isinstance(value, Tensor) else value.whole()


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
