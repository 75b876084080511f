"""The best scale of a unit: the least of a function of one positive number."""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON_STEPS = 60
# Where f is well convex in s, so many steps to its least are enough but for few pairs.
_CONVEX, _STEPS = 3.5, 2


def lowest(p: Tensor, q: Tensor, m: int) -> Tensor:
    """The global minimiser over w > 0 of what a pair of units costs at balanced norms (`matching.units`),

        f(w) = w² - 2 p w + w^{-2m} - 2 q w^{-m},
        f'(w) / 2 = w - p - m w^{-2m-1} + m q w^{-m-1}.                                                    (1)

    Args:
        p: Of every pair.
        q: Likewise.
        m: How often the branch counts.
    """
    if m == 1:
        w, found = hyperbolic(p, q)
        rest = (~found).nonzero(as_tuple=True)
        if rest[0].numel():
            w[rest] = lowest_root(p[rest], q[rest], m)
        return w
    return lowest_root(p, q, m)


def hyperbolic(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The same for m = 1, and where it was found.

    With `w = e^t`, `s = sinh t`, `h = p + q` and `e = p - q`, f is `2 + 4 s² - 2 h (1 + s²)^{1/2} - 2 e s`, convex for
    h < 4, and with `c = (1 + s²)^{-1/2}` half of its slope is `s (4 - h c) - e`, whose own is `4 - h c³`. Newton's
    steps begin at `e / (4 - h)`, which is right to first order: of units of two models few are left after two.
    """
    h, e = p + q, p - q
    convex = h < _CONVEX
    s = e / torch.where(convex, 4 - h, 1)
    step = s
    for _ in range(_STEPS):
        c = torch.rsqrt(1 + s * s)
        step = (s * (4 - h * c) - e) / (4 - h * c * c * c)
        s = s - step
    # Quadratic: the error that is left is about the square of this.
    found = convex & (step.abs() <= _last(s) * (1 + s.abs()))
    root = (1 + s * s).sqrt()
    return torch.where(s > 0, s + root, 1 / (root - s)), found


def lowest_root(p: Tensor, q: Tensor, m: int) -> Tensor:
    """The same for any m, p and q.

    (1) rises from -∞ and is concave up to `c = (2 (2m + 1) / (q (m + 2)))^{1/m}` and convex beyond (concave everywhere
    for q ≤ 0). So Newton's steps climb to the lowest root if it is below c, and descend from above to the highest if
    that is beyond; the global minimum is one of the two.
    """
    low = (m / (1 + (-p).clamp(min=0) + m * q.clamp(min=0))).clamp(max=1) ** (1 / m)
    high = m + p.clamp(min=0)
    w = _newton(low, p, q, m, low, torch.maximum(high, high - m * q))
    beyond = ((q > 0) & (2 * (2 * m + 1) < q * (m + 2) * high**m)).nonzero(as_tuple=True)
    if beyond[0].numel():
        p, q, low, high = (x[beyond] for x in (p, q, low, high))
        other, found = _newton(high, p, q, m, low, high), w[beyond]
        lower = reduced(other, p, q, m) < reduced(found, p, q, m).nan_to_num(torch.inf)
        w[beyond] = torch.where(lower, other, found)
    return w


def reduced(w: Tensor, p: Tensor, q: Tensor, m: int) -> Tensor:
    """What `lowest` makes least."""
    down = w**-m
    return w * (w - 2 * p) + down * (down - 2 * q)


def _newton(w: Tensor, p: Tensor, q: Tensor, m: int, low: Tensor, high: Tensor) -> Tensor:
    """A root of (1) by Newton's steps from w, inside the bracket."""
    for _ in range(_NEWTON_STEPS):
        v = 1 / w
        down = v**m
        slope = w - p + m * v * down * (q - down)
        bend = 1 + m * v * v * down * ((2 * m + 1) * down - (m + 1) * q)
        new = torch.clamp(w - slope / bend, low, high)
        if bool(((new - w).abs() <= _last(w) * w).all()):  # quadratic: the error that is left is its square
            return new
        w = new
    return w


def _last(w: Tensor) -> float:
    """The share of a value that its last step changes: the error that is left is about the square of it."""
    return torch.finfo(w.dtype).eps ** 0.5 / 2
