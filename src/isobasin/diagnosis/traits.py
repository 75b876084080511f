"""What layers of an original and of its conversion are told apart by: norms of tensors, and invariants of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from isobasin.canonical import Canonical
from isobasin.diagnosis import layers
from isobasin.diagnosis.blocks import AnyBlock
from isobasin.diagnosis.layers import Likeness, Order, Traits
from isobasin.diagnosis.pair import Pair
from isobasin.errors import TensorError
from isobasin.matching.invariants import invariants

# What names of a layer begin with, whichever it is.
_ANY = "@"


def order(pair: Pair) -> Order:
    """Which layer of the original each of the conversion's is; blocks are read only where norms leave a doubt."""
    numbers = layers.beginnings(pair.blocks)
    ours, theirs = (_sizes(end, numbers) for end in (pair.a.canonical, pair.b))
    sizes = layers.likeness(ours, theirs, layers.SIZES)
    doubtful = any(max(found.values(), default=0.0) < 1 for found in sizes.values())
    return layers.order(sizes, _invariants(pair, numbers, theirs) if doubtful else {}, numbers)


def _sizes(end: Canonical, starts: Mapping[str, int]) -> Traits:
    """The norms of all tensors of layers."""
    form = layers.patterns(starts)
    found: dict[str, dict[str, Tensor]] = {}
    for name in end.shapes:
        start = form.match(name)
        if start is not None:
            found.setdefault(start[0], {})[name[start.end() :]] = end.read([name])[name].double().norm()
    return found


def _invariants(pair: Pair, starts: Mapping[str, int], theirs: Traits) -> Likeness:
    """How much layers are alike by the invariants of their blocks, where each is read as any layer of the original."""
    forms: list[AnyBlock] = []
    ours: dict[str, dict[str, Tensor]] = {start: {} for start in starts}
    found: dict[str, dict[str, Tensor]] = {start: {} for start in theirs}
    for block in pair.blocks:
        cut = layers.split(block.name, starts)
        if cut is None:
            continue
        form = replace(_elsewhere(block, cut[0], _ANY), layer=0)
        if form not in forms:
            forms.append(form)
            for start, traits in found.items():
                there = _elsewhere(block, cut[0], start)
                traits |= _named(len(forms) - 1, there, pair.conversion({name: name for name in there.shapes()}))
        ours[cut[0]] |= _named(forms.index(form), block, pair.original(block.shapes()))
    return layers.likeness(ours, found, layers.INVARIANTS)


def _elsewhere(block: AnyBlock, start: str, other: str) -> AnyBlock:
    """The block of another layer that is alike; what lies outside of its own layer stays."""
    return block.named(lambda name: other + name.removeprefix(start) if name.startswith(start) else name)


def _named(form: int, block: AnyBlock, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block's invariants in ascending order, by the number of its form; none where it isn't all there.

    Heads of nearly one size may change places by rounding, numbers in order don't.
    """
    if any(name not in tensors or tensors[name].shape != shape for name, shape in block.shapes().items()):
        return {}
    try:
        found = invariants(block, tensors)
    except TensorError:  # a gain of a latent is 0: no invariant is known
        return {}
    return {f"{form} {name}": x.flatten().sort().values for name, x in found.items()}
