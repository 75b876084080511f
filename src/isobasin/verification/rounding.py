"""What rounding does to one model, measured: its stored values are rounded once more, and it runs again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Of the values that differ, the share that is next to the other where a small move was rounded; and how much of a
# rounding those hide that stayed.
_BY_ONE, HIDDEN = 0.05, 0.5
# Values at once: a random number for each is held; and of which a copy is held.
_CHUNK, _PIECE = 2**22, 2**17


def kinds(stored: Iterable[torch.dtype]) -> list[torch.dtype]:
    """Those types of a file that values may be rounded to, the coarsest first."""
    return sorted({d for d in stored if d.is_floating_point and d.itemsize > 1}, key=lambda d: -torch.finfo(d).eps)


def compact(value: Tensor, stored: Iterable[torch.dtype]) -> Tensor:
    """The same values on the CPU, in the first of these types that holds them exactly; in their own if none does."""
    value = value.cpu()
    if value.is_floating_point():
        for dtype in stored:
            small = value.to(dtype)
            # Piece by piece, which stays in the processor's cache.
            pieces = zip(*(x.reshape(-1).split(_PIECE) for x in (small, value)), strict=True)
            if all(torch.equal(x.to(y.dtype), y) for x, y in pieces):
                return small
    return value.clone()


def differing(value: Tensor, other: Tensor | None) -> Tensor | None:
    """Where a tensor's values aren't another's: a mask; None if nowhere, or if they are no floating-point numbers."""
    if not value.is_floating_point():
        return None
    if other is None or other.shape != value.shape:
        return torch.ones_like(value, dtype=torch.bool)
    differs = value != other.to(value)
    return differs if bool(differs.any()) else None


def stays_by_rounding(value: Tensor, other: Tensor | None, dtype: torch.dtype, where: Tensor) -> bool:
    """Whether a move so small that rounding took it back may be behind the values that stayed.

    A small map moves all values of a tensor a little: where that is less than half a unit in the last place nothing
    changes, where it is more many a value goes to the next one. An edit changes some values, and those by more.

    Args:
        value: The tensor.
        other: Another model's.
        dtype: The type that it is stored in.
        where: Where the two differ.
    """
    if other is None or other.shape != value.shape:
        return False
    by_one, flat = 0, (value.reshape(-1), other.to(value).reshape(-1))
    for x, y in zip(*(tensor.split(_CHUNK) for tensor in flat), strict=True):
        gap = (x - y).abs()
        by_one += int(((gap > 0) & (gap <= _unit(torch.maximum(x.abs(), y.abs()), dtype))).sum())
    return by_one >= _BY_ONE * int(where.sum())


@torch.no_grad()
def dither(
    value: Tensor, dtype: torch.dtype, where: Tensor, generator: torch.Generator, elsewhere: float = 0.0
) -> None:
    """Add what one rounding to a type adds, in place: at most half a unit in the last place, evenly distributed.

    Args:
        value: The tensor.
        dtype: The type that it is stored in.
        where: To which values.
        generator: Of the random numbers, on the CPU.
        elsewhere: How much of that is added to the others.
    """
    flat, mask = value.view(-1), where.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part, chosen = flat[start : start + _CHUNK], mask[start : start + _CHUNK]
        noise = torch.rand(part.shape, generator=generator).sub_(0.5).to(part).mul_(_unit(part, dtype))
        part += torch.where(chosen, noise, elsewhere * noise).masked_fill_(part == 0, 0.0)


def _unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A unit in the last place of each value as a type stores it, a new tensor."""
    info = torch.finfo(dtype)
    return _power(x).mul_(info.eps).clamp_(min=info.smallest_normal * info.eps)


# Where the exponent of a number lies, by its type: the integer that is as wide, and a mask.
_EXPONENT = {torch.float64: (torch.int64, 0x7FF << 52), torch.float32: (torch.int32, 0xFF << 23)}


def _power(x: Tensor) -> Tensor:
    """The largest power of two that is not above each size, a new tensor; 0 of what is subnormal."""
    if x.dtype not in _EXPONENT:
        return _power(x.float()).to(x)
    integer, mask = _EXPONENT[x.dtype]
    return (x.view(integer) & mask).view(x.dtype)
