"""One tensor outside of blocks beside the original's: gains, embeddings, tables of positions, readouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobasin.diagnosis.atoms import FITTED, GIVEN
from isobasin.diagnosis.blocks import Examined
from isobasin.diagnosis.findings import Defect, Finding
from isobasin.diagnosis.rounding import coarser, grain, relative, state

# Rows that must have a partner for a table to be the original's in another order.
_ROWS = 0.9
_FACTOR = 1e-3
# A readout that differs by more than this was drawn or lost, and not trained on.
_FAR = 0.3


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what others there are.

    Attributes:
        name: What the original calls it.
        layer: Its layer; None outside of layers.
        offset: What is added to it, if it is a gain; None elsewhere.
        embedding: What the first embedding is called; None if that isn't known.
        readout: Whether it reads the stream after the last layer.
        tied: Whether it is the embedding in the original's files.
        others: The original's tensors of the same shape that it may have been confused with, by name.
    """

    name: str
    layer: int | None = None
    offset: float | None = None
    embedding: str | None = None
    readout: bool = False
    tied: bool = False
    others: Callable[[], Mapping[str, Tensor]] = dict


@dataclass(frozen=True)
class _Guess:
    """A defect, and the tensor without it; `share` of the difference may be left."""

    defect: Defect
    words: str
    fix: str
    tensor: Tensor
    share: float
    restores: bool = False


def examine_tensor(place: Place, x: Tensor, y: Tensor | None) -> Examined:
    """Find the defect of one tensor; `y` is None where the conversion has none."""
    layers = () if place.layer is None else (place.layer,)
    if y is None:
        if not bool(x.any()):
            return Examined(tensors={place.name: x})
        fix = f"copy {place.name} of the original"
        kind, words = (Defect.head, "a readout is missing") if place.readout else (Defect.lost, "a tensor is missing")
        finding = Finding(kind, words, layers, (place.name,), 1.0, None, fix)
        return Examined((finding,), {place.name: x})
    plain = _state(place, x, y, y) if x.shape == y.shape else None
    if plain is not None and not plain.left:
        return plain
    before = relative(x, y) if x.shape == y.shape else math.inf
    found: list[tuple[float, _Guess]] = []
    for guess in _guesses(place, x, y):
        after = relative(x, guess.tensor)
        # More than all of it counts as all of it: whatever is far larger comes nearer by being divided.
        if after <= guess.share * min(before, 1.0):
            found.append((after, guess))
    if not found:
        return plain or Examined(tensors={}, left={place.name: before})
    after, best = min(found, key=lambda one: one[0])
    left = _state(place, x, best.tensor, y, divided=best.share == FITTED)
    shown = None if best.restores else after
    finding = Finding(best.defect, best.words, layers, (place.name,), before, shown, best.fix)
    return Examined((finding,), left.tensors, left.rounded, left=left.left)


def _state(place: Place, x: Tensor, mended: Tensor, y: Tensor, *, divided: bool = False) -> Examined:
    """What is left of the difference once a defect is undone."""
    found = state(x, mended, grain([y]), divided=divided)
    rounded = {place.name: found} if isinstance(found, torch.dtype) else {}
    left = {} if found else {place.name: relative(x, mended)}
    return Examined(tensors={place.name: mended.to(y.dtype)}, rounded=rounded, left=left)


def _guesses(place: Place, x: Tensor, y: Tensor) -> Iterator[_Guess]:
    """Everything that may be wrong with it."""
    if not (x.is_floating_point() and y.is_floating_point()):
        return
    if x.ndim == y.ndim == 2 and x.shape == y.T.shape:
        words, fix = "a matrix is transposed", "transpose it: w.T.contiguous()"
        yield _Guess(Defect.transposed, words, fix, y.T.contiguous(), GIVEN)
    if x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1]:
        yield from _rows(x, y)
    if x.ndim == y.ndim == 1 and len(x) != len(y):
        # A bias of as many rows as its table.
        for guess in _rows(x.unsqueeze(1), y.unsqueeze(1)):
            yield replace(guess, tensor=guess.tensor.squeeze(1))
    if x.shape != y.shape:
        return
    if place.tied and relative(x, y) > _FAR:
        words, fix = (
            "the readout is the embedding in the original, and another one here",
            "tie it, or copy the embedding",
        )
        yield _Guess(Defect.head, words, fix, x, 0.0, restores=True)
    yield from _neutral(place, x, y)
    yield from _numbers(place, x, y)
    yield from confused(place, x, y)


def _neutral(place: Place, x: Tensor, y: Tensor) -> Iterator[_Guess]:
    """One value everywhere."""
    value = float(y.flatten()[0]) if y.numel() else 0.0
    if y.numel() < 2 or not bool((y == value).all()) or bool((x == x.flatten()[0]).all()):
        return
    if place.offset is not None and value + place.offset == 1:
        words, fix = "gains are the neutral ones", "keep the gain, or multiply it into what reads the normalisation"
        yield _Guess(Defect.unfolded, words, fix, x, 0.0, restores=True)
    elif value == 0:
        fix = f"copy {place.name} of the original"
        yield _Guess(Defect.lost, "all values are zero", fix, x, 0.0, restores=True)


def _numbers(place: Place, x: Tensor, y: Tensor) -> Iterator[_Guess]:
    """One added or taken, a factor, or gains multiplied by themselves."""
    if x.numel() < 2:  # any number is a multiple of another
        return
    wide, other = x.double(), y.double()
    if x.ndim == 1:
        for step in (1, -1):
            fix = f"{'subtract' if step > 0 else 'add'} 1, once, for this architecture's convention"
            words = f"gains are one too {'high' if step > 0 else 'low'}"
            yield _Guess(Defect.gain_offset, words, fix, other - step, FITTED)
    if place.offset is not None:
        gain, words = wide + place.offset, "gains are multiplied by themselves"
        twice = torch.where(gain == 0, 0, (other + place.offset) / gain) - place.offset
        yield _Guess(Defect.folded, words, "fold the gain once, or not at all", twice, FITTED)
    size = float(wide.square().sum())
    factor = float((wide * other).sum()) / size if size else 1.0
    if factor and abs(factor - 1) > _FACTOR:
        root = math.sqrt(x.shape[-1])
        named = {"sqrt(width)": root, "1/sqrt(width)": 1 / root}
        name = next((what for what, value in named.items() if abs(factor / value - 1) < _FACTOR), f"{factor:.4g}")
        fix = "leave the factor to the model, or divide by it"
        yield _Guess(Defect.scale, f"multiplied by {name}", fix, other / factor, FITTED)


def confused(place: Place, x: Tensor, y: Tensor) -> Iterator[_Guess]:
    """The values of another tensor of the original."""
    for name, other in place.others().items():
        # Vectors of gains are alike: they have to be nearer to the other one by far.
        if name == place.name or other.shape != y.shape or relative(x, other) == 0:
            continue
        if relative(other, y) > FITTED * relative(other, x):
            continue
        if place.readout and name == place.embedding:
            words, fix = "the readout is the embedding", "store lm_head by itself, tie_word_embeddings: false"
            yield _Guess(Defect.head, words, fix, x, 0.0, restores=True)
        else:
            fix = f"give {place.name} its own values"
            yield _Guess(Defect.swapped, f"it has the values of {name}", fix, x, 0.0, restores=True)


def _rows(x: Tensor, y: Tensor) -> Iterator[_Guess]:
    """A table whose rows lie elsewhere, or of which there are more or fewer."""
    partner = _partners(x, y)
    known = partner >= 0
    share = float(known.sum()) / max(1, min(len(x), len(y)))
    if share < _ROWS or len(set(partner[known].tolist())) < int(known.sum()):
        shift = _shift(partner)
        if shift is None:
            return
        known = known & (partner - torch.arange(len(y)) == shift)
    shifts = (partner - torch.arange(len(y)))[known]
    mended = x.to(y.dtype).clone()
    mended[partner[known]] = y[known]
    if len(shifts) and bool((shifts == shifts[0]).all()):
        step = int(shifts[0])
        if step:
            words = f"rows are off by {abs(step)}: row 0 of the original is row {-step}"
            words = words if step < 0 else f"rows are off by {step}: row 0 is row {step} of the original"
            yield _Guess(Defect.positions, words, "keep the rows that are reserved before the first", mended, GIVEN)
        elif len(y) != len(x):
            many = f"{abs(len(y) - len(x))} row{'s' if abs(len(y) - len(x)) > 1 else ''}"
            words = f"{many} more than the original" if len(y) > len(x) else f"{many} fewer than the original"
            yield _Guess(Defect.rows, words, "cut padding rows off, or keep all rows", mended, GIVEN)
        return
    yield _Guess(Defect.rows, "rows lie in another order", "put the rows in the tokenizer's order", mended, GIVEN)


def _shift(partner: Tensor) -> int | None:
    """By how much nearly all rows that have a partner are shifted."""
    found = (partner - torch.arange(len(partner)))[partner >= 0]
    if not len(found):
        return None
    step = int(found.mode().values)
    reach = len(partner) - abs(step)
    return step if step and float((found == step).sum()) >= _ROWS * reach else None


def _partners(x: Tensor, y: Tensor) -> Tensor:
    """Of every row of y the equal one of x, the one in its place first; -1 if there is none.

    Rows are compared as the narrower of both types holds them.
    """
    kind = coarser(grain([x]), grain([y]))
    ours, theirs = ([row.tobytes() for row in rows.to(kind).to(torch.float64).contiguous().numpy()] for rows in (x, y))
    where: dict[bytes, int] = {}
    for index, row in enumerate(ours):
        where.setdefault(row, index)
    same = [index < len(ours) and ours[index] == row for index, row in enumerate(theirs)]
    return torch.tensor([i if same[i] else where.get(row, -1) for i, row in enumerate(theirs)], dtype=torch.int64)
