"""The straight line between two models, and the loss along it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from isobasin.errors import TensorError

POINTS = 25
"""How many points of the line the paper evaluates, ends included."""

Module = TypeVar("Module", bound=nn.Module)
State = Mapping[str, Tensor]


def points(count: int = POINTS) -> tuple[float, ...]:
    """Equally spaced points from 0 to 1, both included."""
    if count < 2:
        raise ValueError(f"{count} points: a line has two ends")
    return tuple(i / (count - 1) for i in range(count))


def interpolated(a: State, b: State, t: float, module: Module) -> Module:
    """Set a module to the point `(1 - t) a + t b` of the line between two states.

    Args:
        a: State dict of one end, t = 0.
        b: State dict of the other end, t = 1.
        t: Where on the line.
        module: Has tensors of the same names and shapes; it is changed in place, and its types stay.

    Returns:
        The module.

    Raises:
        TensorError: Names or shapes differ, or a tensor that is not floating-point differs between the ends.
    """
    state: dict[str, Tensor] = module.state_dict()
    _check_alike(a, b, state)
    with torch.no_grad():
        for name, slot in state.items():
            x, y = a[name], b[name]
            if x.is_floating_point():
                slot.copy_(torch.lerp(x.to(torch.float64), y.to(torch.float64), t))
            elif torch.equal(x, y):
                slot.copy_(x)
            else:
                raise TensorError(f"tensor {name!r} is {x.dtype} and differs: there is no line between the two")
    return module


def losses_along(
    a: State, b: State, module: Module, loss: Callable[[Module], float], t: Sequence[float] | None = None
) -> list[float]:
    """The loss at every point of the line between two states.

    Args:
        a: State dict of one end, t = 0.
        b: State dict of the other end, t = 1. Neither may share memory with `module`.
        module: What the loss is computed with; it is left at the last point.
        loss: The loss of a module.
        t: The points; None for the paper's 25.
    """
    return [loss(interpolated(a, b, at, module)) for at in (points() if t is None else t)]


def _check_alike(a: State, b: State, module: State) -> None:
    """Refuse states whose tensors differ in name or shape."""
    for name in sorted(a.keys() | b.keys() | module.keys()):
        shapes = [tuple(state[name].shape) if name in state else None for state in (a, b, module)]
        if None in shapes or len(set(shapes)) > 1:
            shown = ", ".join("missing" if shape is None else str(shape) for shape in shapes)
            raise TensorError(f"tensor {name!r} has shapes {shown} in a, b and the module: give three of one kind")
