"""The straight line between two models, and the loss along it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from isobasin.errors import TensorError
from isobasin.pictures import band, inline, new_axes
from isobasin.plain import Plain
from isobasin.records.curves import height

POINTS = 25
"""How many points of the line the paper evaluates, ends included."""

MOST_POINTS = 10_001
"""How many are evaluated at most."""

Module = TypeVar("Module", bound=nn.Module)
State = Mapping[str, Tensor]


def points(count: int = POINTS) -> tuple[float, ...]:
    """Equally spaced points from 0 to 1, both included."""
    if count < 2:
        raise ValueError(f"{count} points: a line has two ends")
    return tuple(i / (count - 1) for i in range(count))


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A tensor of the point `(1 - t) A + t B`, in float64: it is cast once, by whoever takes it."""
    return torch.lerp(a.to(torch.float64), b.to(torch.float64), t)


class LinearPath(Generic[Module]):
    """The path `θ(t) = (1 - t) A + t B`, walked by one module whose weights are set in place.

    Only tensors that differ between the ends are touched, each in float64 and cast once to the module's type.

    Attributes:
        module: What the losses are computed with; it has the weights of the point that was asked for last.
    """

    def __init__(self, a: State, b: State, module: Module) -> None:
        """The line between two states; the module is put at A.

        Args:
            a: State dict of one end, t = 0.
            b: State dict of the other end, t = 1. Neither may share memory with the module.
            module: Has tensors of the same names and shapes; it is changed in place, and its types stay.

        Raises:
            TensorError: Names or shapes differ, or a tensor that is not floating-point differs between the ends.
        """
        self.module = module
        state: dict[str, Tensor] = module.state_dict()
        check_line(a, b, state)
        self._moving: dict[str, tuple[Tensor, Tensor]] = {}
        for name, slot in state.items():
            x, y = a[name], b[name]
            slot.copy_(x)
            if torch.equal(x, y):
                continue
            self._moving[name] = (x, y)

    @classmethod
    def between(cls, a: Module, b: nn.Module) -> LinearPath[Module]:
        """The line between two modules, neither of which is changed: a copy of `a` walks it."""
        return cls(a.state_dict(), b.state_dict(), copy.deepcopy(a))

    @torch.no_grad()
    def at(self, t: float) -> Module:
        """The module at `(1 - t) A + t B`; the ends are met exactly."""
        # Asked for anew: a loss may have moved the module to another device, and so given it other tensors.
        state: dict[str, Tensor] = self.module.state_dict()
        for name, (x, y) in self._moving.items():
            slot = state[name]
            slot.copy_((y if t else x) if t in (0, 1) else blend(x, y, t))
        return self.module


@dataclass(frozen=True)
class LossCurve(Plain):
    """The loss along a path.

    Attributes:
        t: The points.
        losses: At each of them.
        height: Of the barrier: at least 0, the value at both ends.
        worst_t: Where it is reached first; 0 if nothing rises above the line.
        errors: Standard error of each loss, by the draws that give the barrier its own; None where there is none, and
            empty where nothing is known of them, as of any loss.
    """

    t: tuple[float, ...]
    losses: tuple[float, ...]
    height: float
    worst_t: float
    errors: tuple[float | None, ...] = ()

    def plot(self, ax: Any = None, **line: Any) -> Any:
        """Draw the losses along the path, in a band of one standard error, and the line above which the barrier rises.

        Args:
            ax: Axes of matplotlib to draw on; None makes a figure, which a notebook shows.
            line: What `Axes.plot` takes besides, such as `label` and `color`.

        Returns:
            The axes.

        Raises:
            DependencyError: matplotlib is missing.
        """
        axes = new_axes() if ax is None else ax
        look = {"marker": "o", "markersize": 3.5, "linewidth": 1.6, **line}
        (drawn,) = axes.plot(self.t, self.losses, **look)
        if self.errors:
            band(axes, self.t, self.losses, self.errors, drawn.get_color())
        ends = self.losses[0], self.losses[-1]
        axes.plot((self.t[0], self.t[-1]), ends, linestyle=":", linewidth=1, color=drawn.get_color())
        axes.set(xlabel="t: weights (1 - t) A + t B", ylabel="loss")
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    def _picture(self) -> str:
        return inline([self.plot], "loss along the line")


def barrier(
    path: LinearPath[Module], loss_fn: Callable[[Module], float], t: Sequence[float] | None = None
) -> LossCurve:
    """The loss barrier `sup_t [ L(θ(t)) - (1 - t) L(A) - t L(B) ]` of a path (arXiv 2606.17830, section 5).

    The paper writes `t A + (1 - t) B`: the same supremum, with t counted from the other end.

    Args:
        path: From A to B, as in `LinearPath.between(a, b)`.
        loss_fn: Any loss of a module. One that is not a number counts as infinite.
        t: The points, rising from 0 to 1; None for the paper's 25.

    Raises:
        ValueError: The points aren't those, or the loss of an end is not finite.
    """
    at = tuple(points() if t is None else t)
    losses = tuple(float(loss_fn(path.at(point))) for point in at)
    found = height(losses, at)
    return LossCurve(at, losses, found.height, found.t)


def check_line(a: State, b: State, module: State | None = None) -> None:
    """Refuse states between which there is no line.

    Args:
        a: One end.
        b: The other end.
        module: What goes from one to the other; None for nothing more.

    Raises:
        TensorError: Names or shapes differ, or a tensor that is not floating-point differs between the ends.
    """
    states = {"a": a, "b": b, **({} if module is None else {"the module": module})}
    for name in sorted(set().union(*states.values())):
        shapes = [tuple(state[name].shape) if name in state else None for state in states.values()]
        if None in shapes or len(set(shapes)) > 1:
            shown = ", ".join("missing" if shape is None else str(shape) for shape in shapes)
            raise TensorError(
                f"tensor {name!r} has shapes {shown} in {', '.join(states)}: give the same names and shapes"
            )
        if not a[name].is_floating_point() and not torch.equal(a[name], b[name]):
            raise TensorError(f"tensor {name!r} is {a[name].dtype} and differs: there is no line between the two")
