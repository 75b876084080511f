"""All places of a conversion: its configuration, the order of its layers, its blocks and its other tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from isobasin.architectures.entries import shown
from isobasin.architectures.meaning import differences
from isobasin.diagnosis import layers, traits
from isobasin.diagnosis.blocks import AnyBlock, Examined, Kind, examine
from isobasin.diagnosis.findings import Defect, Finding, merged
from isobasin.diagnosis.layers import Order
from isobasin.diagnosis.pair import Pair
from isobasin.diagnosis.rounding import relative
from isobasin.diagnosis.tensors import Place, examine_tensor
from isobasin.memory import give_memory_back

Progress = Callable[[str, int, int], None]
Item = AnyBlock | str
"""A block, or the canonical name of a tensor outside of blocks."""


@dataclass(eq=False)
class Whole:
    """What was found at all places.

    Attributes:
        pair: The two checkpoints.
        order: Which layer is which.
        numbers: The number of each of the original's layers, by the beginning of its names.
        found: Findings, as they came.
        moved: Layers whose blocks differ by a move.
        left: Tensors that differ by something else, as the original stores them, and by how much.
        fits: Whether the conversion has a place for every tensor.
        kinds: What was learned of blocks of each kind.
    """

    pair: Pair
    order: Order
    numbers: Mapping[str, int]
    found: list[Finding] = field(default_factory=lambda: [])
    moved: set[int] = field(default_factory=lambda: set[int]())
    left: dict[str, float] = field(default_factory=lambda: {})
    fits: bool = True
    kinds: dict[str, Kind] = field(default_factory=lambda: {})
    _squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    @classmethod
    def of(cls, pair: Pair) -> Whole:
        """Before any place was looked at."""
        fits = dict(pair.a.canonical.shapes) == dict(pair.b.shapes)
        return cls(pair, traits.order(pair), layers.beginnings(pair.blocks), fits=fits)

    def look(self, progress: Progress) -> None:
        """Look at every place once."""
        pair = self.pair
        self.found += [*self.order.findings, *configuration(pair, self.order)]
        for item in places(pair, self.order, progress, "comparing"):
            self._add(item)
            give_memory_back()
        used = {name for names in map(self.names, _items(pair)) for name in names.values()}
        twice = any(finding.defect is Defect.layers for finding in self.order.findings)
        for name in () if twice else pair.b.shapes.keys() - used:
            if bool(pair.b.read([name])[name].any()):
                self.left[pair.b.view.stored(name)] = math.inf

    def distance(self) -> float:
        """`before`, where no place was looked at."""
        size = gap = 0.0
        for item in _items(self.pair):
            x, y = self._tensors(item)
            size += sum(float(tensor.double().square().sum()) for tensor in x.values())
            gap += sum(_gap(tensor, y.get(name)) for name, tensor in x.items())
            give_memory_back()
        return (gap / size) ** 0.5 if size else 0.0

    @property
    def before(self) -> float:
        """The norm of all differences over that of the original's tensors."""
        return (self._squares[1] / self._squares[0]) ** 0.5 if self._squares[0] else 0.0

    @property
    def after(self) -> float:
        """The same once the defects are undone."""
        return (self._squares[2] / self._squares[0]) ** 0.5 if self._squares[0] else 0.0

    def findings(self) -> tuple[Finding, ...]:
        """Defects, without those that cancel: a gain that is in all that reads it, and nowhere else."""
        gone: set[int] = set()
        for norm in () if self.pair.stream is None else self.pair.stream.norms:
            reset = [f for f in self.found if f.defect is Defect.unfolded and f.tensors == (norm.gain,)]
            into = [
                f for f in self.found if f.defect is Defect.folded and f" {norm.gain} is multiplied into" in f.words
            ]
            if reset and {name for f in into for name in f.tensors} >= {reader.weight for reader in norm.readers}:
                gone |= {id(f) for f in (*reset, *into)}
                self.moved |= {layer for f in into for layer in f.layers}
        stored = self.pair.a.view.stored
        kept = [f for f in self.found if id(f) not in gone]
        names = {f.tensors: tuple(map(stored, f.tensors)) for f in kept if f.defect is not Defect.configuration}
        return merged(replace(f, tensors=names.get(f.tensors, f.tensors)) for f in kept)

    def names(self, item: Item) -> dict[str, str]:
        """The original's tensors at a place, and what the conversion calls what stands for them."""
        found = {name: self.order.name(name) for name in ([item] if isinstance(item, str) else item.shapes())}
        return {name: there for name, there in found.items() if there is not None}

    def _missing(self, item: Item) -> bool:
        """Whether a place is in a layer that is missing, which is said already."""
        return any(self.order.name(name) is None for name in ([item] if isinstance(item, str) else item.shapes()))

    def examined(self, item: Item) -> Examined:
        """What is wrong at one place."""
        return self._looked(item)[2]

    def _tensors(self, item: Item) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of both at one place."""
        own = [item] if isinstance(item, str) else item.shapes()
        return self.pair.original(own), self.pair.conversion(self.names(item))

    def _looked(self, item: Item) -> tuple[dict[str, Tensor], dict[str, Tensor], Examined]:
        """The tensors of both at one place, and what is wrong with the conversion's."""
        pair, (x, y) = self.pair, self._tensors(item)
        if self._missing(item):
            return x, y, Examined(tensors=x)
        misshapen = [name for name, one in x.items() if name not in y or y[name].shape != one.shape]
        if isinstance(item, str) or any(x[name].ndim > 1 for name in misshapen):
            # Without one of its matrices, or with one of another shape, there is no block.
            return x, y, _joined([self._tensor(name, one, y.get(name)) for name, one in x.items()])
        kind = self.kinds.setdefault(f"{type(item).__name__} {item.stack} {item.group}", Kind())
        whole = y | {name: x[name].new_zeros(x[name].shape) for name in misshapen}
        found = examine(item, x, whole, pair.readings(item), kind)
        swapped = [self._tensor(name, x[name], y.get(name)) for name in found.left]
        return x, y, _joined([found, *(one for one in swapped if _swapped(one))])

    def _tensor(self, name: str, x: Tensor, y: Tensor | None) -> Examined:
        """What is wrong with one tensor by itself."""
        pair, start = self.pair, layers.split(name, self.order.source)
        layer = None if start is None else self.numbers[start[0]]
        facts = pair.offsets.get(name), pair.embedding, name in pair.readouts, name in pair.a.original.view.ties
        return examine_tensor(Place(name, layer, *facts, partial(self._alike, name)), x, y)

    def _alike(self, name: str) -> Mapping[str, Tensor]:
        """Tensors that one may have been confused with: of its shape, in its layer or outside of all."""
        starts, shapes = self.order.source, self.pair.a.canonical.shapes
        cut = layers.split(name, starts)
        alike = [
            other
            for other, shape in shapes.items()
            if shape == shapes.get(name)
            and (layers.split(other, starts) or (None,))[0] in (None if cut is None else cut[0], None)
        ]
        return self.pair.original(alike)

    def _add(self, item: Item) -> None:
        """Take in what is wrong at a place."""
        x, y, one = self._looked(item)
        self.found += one.findings
        for name, kind in one.rounded.items():
            start = layers.split(name, self.order.source)
            where = () if start is None else (self.numbers[start[0]],)
            words, fix = (
                f"rounded to {str(kind).removeprefix('torch.')}",
                "convert from the wider type, if it is wanted",
            )
            residual = relative(x[name], one.tensors[name])
            self.found.append(Finding(Defect.rounding, words, where, (name,), residual, None, fix))
        self.left |= {self.pair.a.view.stored(name): size for name, size in one.left.items()}
        self.moved |= {item.layer} if one.moved and not isinstance(item, str) else set()
        for name, tensor in x.items():
            self._squares[0] += float(tensor.double().square().sum())
            self._squares[1] += _gap(tensor, y.get(name))
            self._squares[2] += 0.0 if one.moved else _gap(tensor, one.tensors.get(name))


def _swapped(one: Examined) -> bool:
    """Whether a tensor has another one's values."""
    return bool(one.findings) and one.findings[0].defect is Defect.swapped


def _gap(x: Tensor, y: Tensor | None) -> float:
    """The squared difference; of what is missing, or of another shape, all of it."""
    wide = x.double()
    return float((wide if y is None or y.shape != x.shape else wide - y.double()).square().sum())


def _joined(found: Sequence[Examined]) -> Examined:
    """What was found at the parts of a place; of a tensor that is there twice, the later."""
    tensors: dict[str, Tensor] = {}
    left: dict[str, float] = {}
    rounded: dict[str, torch.dtype] = {}
    for one in found:
        left = {name: size for name, size in left.items() if name not in one.tensors} | dict(one.left)
        tensors |= one.tensors
        rounded |= one.rounded
    findings = tuple(finding for one in found for finding in one.findings)
    return Examined(findings, tensors, rounded, found[0].moved, left)


def _items(pair: Pair) -> list[Item]:
    """Every place once."""
    inside = {name for block in pair.blocks for name in block.shapes()}
    unique = list({tuple(block.shapes()): block for block in pair.blocks}.values())
    return [*unique, *(name for name in pair.a.canonical.shapes if name not in inside)]


def places(pair: Pair, order: Order, progress: Progress, what: str) -> Iterator[Item]:
    """Every place, blocks first."""
    items = _items(pair)
    for done, item in enumerate(items):
        progress(what, done, len(items))
        yield item
    progress(what, len(items), len(items))


def configuration(pair: Pair, order: Order) -> Iterator[Finding]:
    """Entries of config.json that mean something else, but for the number of layers where that is said already."""
    for found in differences(pair.a.canonical.description, pair.b.description):
        if order.explains(found.a, found.b):
            continue
        words = f"{found.entry} is {shown(found.b)}, not {shown(found.a)}"
        fix = f"write {shown(found.a)} into {found.entry} of config.json"
        yield Finding(Defect.configuration, words, (), (found.entry,), None, None, fix)
