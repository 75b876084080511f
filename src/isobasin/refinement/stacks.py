"""Blocks of different layers that are alike, moved together: a batch of group elements acts on a stack of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.feedforwards import FeedForward
from isobasin.model import Blocks
from isobasin.symmetries import turning
from isobasin.symmetries.along import Stream
from isobasin.symmetries.factor import Factor, Parts

AnyBlock = AttentionBlock | FeedForward


@dataclass(frozen=True)
class Turn:
    """A move of the residual stream: what axes of each role are multiplied by, and the gains and biases after it."""

    maps: turning.Maps
    gains: Tensor
    biases: Tensor


@dataclass(frozen=True)
class Piece:
    """Tensors that move together: those of a block, or one that none has, with what they pass through in the stream.

    Attributes:
        move: What moves call the block; empty where there is none.
        names: The tensors.
        places: The normalisations of the stream in which they have a part, by number.
        block: The block, its tensors named by their numbers in `names`, and the same for all layers; or None.
        stream: The stream as far as it runs there, likewise; None where that isn't moved.
    """

    move: str
    names: tuple[str, ...]
    places: tuple[int, ...]
    block: AnyBlock | None
    stream: Stream | None

    @classmethod
    def of(cls, move: str, block: AnyBlock | None, names: Iterable[str], stream: Stream | None) -> Piece:
        """A piece of a model."""
        names = tuple(names)
        numbers = _Numbers({name: str(number) for number, name in enumerate(names)})
        places, own = ([], None) if stream is None else stream.part(names)
        alike = None if block is None else replace(block.named(numbers.__getitem__), layer=0, name="", stack="")
        return cls(move, names, tuple(places), alike, None if own is None else own.named(numbers))


class _Numbers(dict[str, str]):
    """Numbers of tensors by name: one that has none lies elsewhere."""

    def __missing__(self, name: str) -> str:
        return "elsewhere"


def pieces(blocks: Sequence[tuple[str, AnyBlock]], stream: Stream | None) -> Iterator[Piece]:
    """All that moves where these blocks do, with what moves call them, and the stream."""
    done: set[str] = set()
    for move, block in blocks:
        piece = Piece.of(move, block, block.shapes() if stream is None else stream.needed(block.shapes()), stream)
        yield piece
        done |= set(piece.names)
    if stream is None:
        return
    needed = {name: stream.needed([name]) for name in stream.ordered()}
    # What a tensor passes through is moved with it, so that it comes first.
    for name in sorted(needed, key=lambda name: -len(needed[name])):
        if name not in done:
            yield Piece.of("", None, needed[name], stream)
            done |= set(needed[name])


class Stack:
    """Pieces of one model that differ in their names and values alone.

    Attributes:
        pieces: One of every layer.
        coordinates: By their names in the block's group, `(layers, ...)`.
    """

    def __init__(self, alike: Sequence[tuple[Piece, Parts]], stretching: float = 1.0) -> None:
        """All coordinates at 0.

        Args:
            alike: Pieces that differ in their names alone, each with its folded tensors by number.
            stretching: The share of coordinates that counts, of all that rotates nothing.
        """
        self.pieces = tuple(piece for piece, _ in alike)
        first = self.pieces[0]
        self._tensors = {name: torch.stack([tensors[name] for _, tensors in alike]) for name in alike[0][1]}
        some = next(iter(self._tensors.values()))
        dtype, device = some.dtype, some.device
        self._together, self._stretching = len(alike) > 1, stretching
        self._places = torch.tensor([piece.places for piece in self.pieces], dtype=torch.int64, device=device)
        factors = () if first.block is None else first.block.group.factors
        # What changes nothing on the line either, as the free shift of a key bias, has no coordinate.
        moving = [factor for factor in factors if factor.coordinates and not factor.idle]
        self._factors = [(factor, _identity(factor, dtype, device)) for factor in moving]
        self.coordinates = {
            part: torch.zeros(len(self.pieces), *shape, dtype=dtype, device=device, requires_grad=True)
            for factor in moving
            for part, shape in factor.coordinates.items()
            if 0 not in shape
        }

    @property
    def point(self) -> Parts:
        """Where the coordinates are, as charts of factors read them."""
        if self._stretching == 1:
            return self.coordinates
        factors = {part: factor for factor, _ in self._factors for part in factor.coordinates}
        return {part: factors[part].slowed(x, self._stretching) for part, x in self.coordinates.items()}

    def moved(self, turn: Turn | None) -> dict[str, Tensor]:
        """The tensors at the coordinates by their names in the model, after a move of the stream."""
        rows = () if turn is None else (turn.gains[self._places], turn.biases[self._places])

        def act(coordinates: Parts, tensors: Parts, *norms: Tensor) -> Parts:
            return self._act(coordinates, tensors, None if turn is None else Turn(turn.maps, *norms))

        return self._named(self._each(act, self.point, self._tensors, *rows))

    def _named(self, found: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Tensors of each layer by number under their names in the model."""
        return {
            name: found[str(number)][layer]
            for layer, piece in enumerate(self.pieces)
            for number, name in enumerate(piece.names)
            if str(number) in found
        }

    def returned(self, back: turning.Maps | None, tensors: Parts) -> dict[str, Tensor]:
        """Tensors at the coordinates, by their names in the model, moved back to 0, with normalisations folded.

        Args:
            back: What takes the move of the stream back; None where that isn't moved.
            tensors: What `moved` returns, or other values of the same.
        """
        names = {
            str(number): [piece.names[number] for piece in self.pieces] for number in range(len(self.pieces[0].names))
        }
        there = {number: torch.stack([tensors[x] for x in own]) for number, own in names.items() if own[0] in tensors}
        return self._named(self._each(lambda at, x: self._act_back(at, x, back), self.point, there))

    def _each(self, act: Callable[..., Parts], *stacks: Parts | Tensor) -> dict[str, Sequence[Tensor]]:
        """What a function returns for each layer: for all at once, or where it asks for a value, one by one."""
        if self._together:
            try:
                return {number: x.unbind() for number, x in vmap(act)(*stacks).items()}
            except RuntimeError:
                # While a graph is recorded something else is wrong, which its recorder is to hear of.
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise
                self._together = False

        def of(layer: int, x: Parts | Tensor) -> Parts | Tensor:
            return x[layer] if isinstance(x, Tensor) else {name: part[layer] for name, part in x.items()}

        found = [act(*(of(layer, x) for x in stacks)) for layer in range(len(self.pieces))]
        return {number: [one[number] for one in found] for number in found[0]}

    def _act(self, coordinates: Parts, tensors: Parts, turn: Turn | None) -> Parts:
        """The tensors of one layer by number, at its coordinates."""
        stream = self.pieces[0].stream
        if stream is not None and turn is not None:
            turned = turning.turn(stream, turn.maps, tensors)
            tensors = turning.unfold(stream, turn.gains, turn.biases, turned)
        return self._within(tensors, [{**one, **factor.chart(coordinates)} for factor, one in self._factors])

    def _act_back(self, coordinates: Parts, tensors: Parts, back: turning.Maps | None) -> Parts:
        """The tensors of one layer by number, moved back from its coordinates."""
        elements = [factor.inverse({**one, **factor.chart(coordinates)}) for factor, one in self._factors]
        tensors, stream = self._within(tensors, elements, backwards=True), self.pieces[0].stream
        return tensors if stream is None or back is None else turning.turn(stream, back, turning.fold(stream, tensors))

    def _within(self, tensors: Parts, elements: Sequence[Parts], *, backwards: bool = False) -> Parts:
        """The tensors of one layer after moves inside its block, in the factors' order or backwards."""
        block = self.pieces[0].block
        if block is None or not self._factors:
            return tensors
        some = next(iter(tensors.values()))
        read: Any = block.read(tensors, some.device, some.dtype)
        weights = read.tensors()
        for index in sorted(range(len(elements)), reverse=backwards):
            weights = self._factors[index][0].act(elements[index], weights)
        return {**tensors, **block.write(tensors, type(read)(**weights))}


def stacked(
    model: Blocks, found: Iterable[Piece], dtype: torch.dtype, device: str, stretching: float = 1.0
) -> list[Stack]:
    """Stacks of pieces that are alike; `stretching` as of `Stack`."""
    alike: dict[Any, list[tuple[Piece, Parts]]] = {}
    for piece in found:
        stored = model.double(piece.names, device)
        tensors = {str(number): stored[name] for number, name in enumerate(piece.names)}
        folded = tensors if piece.stream is None else turning.fold(piece.stream, tensors)
        cast = {name: x.to(dtype) for name, x in folded.items()}
        key = piece.block, piece.stream, tuple((name, x.shape) for name, x in cast.items())
        alike.setdefault(key, []).append((piece, cast))
    return [Stack(some, stretching) for some in alike.values()]


def _identity(factor: Factor, dtype: torch.dtype, device: torch.device) -> Parts:
    """The identity element in a real type, or in the complex one that goes with it."""
    parts = factor.identity((), device).items()
    types = {True: dtype.to_complex(), False: dtype}
    return {name: x.to(types[x.is_complex()]) if x.dtype != torch.int64 else x for name, x in parts}
