"""The exponential and the inverse of matrices, exact or quick."""

from __future__ import annotations

import torch
from torch import Tensor

# Steps to an inverse: as many as a condition number of a few hundred takes.
_STEPS = 26
# Squarings after the polynomial: it is that of degree 6, of a matrix this often halved.
_SQUARINGS = 6


def exponential(x: Tensor) -> Tensor:
    """`exp(x)` of matrices, `(..., n, n)`.

    In single precision, where a gradient is wanted, it is a polynomial with a fixed number of products: its gradient
    costs two more of each, where that of torch's is an exponential of twice the size, and no norm is asked for, for
    which a GPU would have to be waited for. For norms below 16 it differs by rounding. Otherwise it is torch's.
    """
    if _exact(x):
        return torch.matrix_exp(x)
    x = x / 2**_SQUARINGS
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    square = x @ x
    cube = square @ x
    found = one + x + square / 2 + cube @ (one / 6 + x / 24 + square / 120 + cube / 720)
    for _ in range(_SQUARINGS):
        found = found @ found
    return found


def inverse(u: Tensor) -> Tensor:
    """`U^{-1}` of matrices, `(..., n, n)`; whether there is one is not asked.

    On a GPU, in single precision, where a gradient is wanted, by products alone: what decomposes many small matrices
    there may wait for the device, and then no step could be recorded. Newton's iteration, `V <- V (2 - U V)`, doubles
    the right digits at every step once the condition number's are there (Ben-Israel and Cohen, 1966).
    """
    if _exact(u) or not u.is_cuda:
        return torch.linalg.inv_ex(u).inverse
    return _iterated(u)


def _exact(x: Tensor) -> bool:
    """Whether a matrix is in double precision, or no gradients are taken; what `vmap` hands on doesn't say of which."""
    return x.dtype in (torch.float64, torch.complex128) or not torch.is_grad_enabled()


def _iterated(u: Tensor) -> Tensor:
    twice = 2 * torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    with torch.no_grad():
        sizes = u.abs().sum(-1).amax(-1) * u.abs().sum(-2).amax(-1)
        found = u.mH / sizes[..., None, None]
        for _ in range(_STEPS):
            found = found @ (twice - u @ found)
    # Whose derivative at the inverse V is that of the inverse, -V dU V.
    return found @ (twice - u @ found)
