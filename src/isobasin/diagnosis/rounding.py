"""How near two tensors are: the same, the same after one rounding to a type, or not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# From wide to narrow.
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
# Half a unit in the last place, with a little room.
_HALF = 0.51
# Roundings by which arithmetic may change values, of types that are wide enough to tell.
_ARITHMETIC = 16
_WIDE = 1e-5


def eps(kind: torch.dtype) -> float:
    """The step from 1 to the next number of a type."""
    return torch.finfo(kind).eps


def smallest(kind: torch.dtype) -> float:
    """The smallest number of a type above zero."""
    return torch.finfo(kind).smallest_normal * eps(kind)


def grain(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest type that holds all of these values: they may have been rounded to it, whatever they are stored in.

    Zeros and ones are in every type, and say nothing.
    """
    given = [x for x in tensors if x.is_floating_point() and not bool(((x == 0) | (x.abs() == 1)).all())]
    found = max((x.dtype for x in given), key=eps, default=torch.float32)
    for kind in _TYPES:
        if given and eps(kind) > eps(found) and all(bool((x == x.to(kind).to(x)).all()) for x in given):
            found = kind
    return found


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The one of two types that has fewer digits."""
    return max((one, other), key=eps)


def tolerance(kind: torch.dtype) -> float:
    """The relative difference of whole tensors that one rounding to a type explains."""
    return eps(kind) * (_ARITHMETIC if eps(kind) < _WIDE else 1)


def state(x: Tensor, y: Tensor, kind: torch.dtype, *, divided: bool = False) -> torch.dtype | bool:
    """Whether y is x; or the type that x was rounded to.

    Args:
        x: The original.
        y: The other one, of the same shape.
        kind: A type that holds all of its values.
        divided: Whether y was divided by factors, which rounds it once more.

    Returns:
        True if they are equal, False if no rounding explains the difference, or the type.
    """
    if torch.equal(x, y.to(x.dtype)) if x.dtype == y.dtype else torch.equal(x.double(), y.double()):
        return True
    if not (x.is_floating_point() and y.is_floating_point()):
        return False
    gap, size = (x.double() - y.double()).abs(), x.double().abs()
    own = coarser(x.dtype, kind)
    if eps(kind) > eps(grain([x])) and bool((gap <= _HALF * eps(kind) * size + smallest(kind)).all()):
        return kind
    # What was added and taken again is rounded as the values that it was added to. Narrow types can't tell that from
    # training.
    if (divided or eps(own) < _WIDE) and bool((gap <= tolerance(own) * (size + size.square().mean().sqrt())).all()):
        return divided or own
    return False


def relative(x: Tensor, y: Tensor) -> float:
    """The norm of the difference over x's norm; infinite where x is zero and y isn't."""
    size, gap = float(x.double().norm()), float((x.double() - y.double()).norm())
    return gap / size if size else (float("inf") if gap else 0.0)
