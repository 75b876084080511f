"""The exponential of matrices, exact or quick."""

from __future__ import annotations

import torch
from torch import Tensor

# Squarings after the polynomial: it is that of degree 6, of a matrix this often halved.
_SQUARINGS = 6


def exponential(x: Tensor) -> Tensor:
    """`exp(x)` of matrices, `(..., n, n)`.

    In single precision, where a gradient is wanted, it is a polynomial with a fixed number of products: its gradient
    costs two more of each, where that of torch's is an exponential of twice the size, and no norm is asked for, for
    which a GPU would have to be waited for. For norms below 16 it differs by rounding. Otherwise it is torch's.
    """
    exact = x.dtype in (torch.float64, torch.complex128)
    # What `vmap` hands on doesn't say whether a gradient is wanted.
    if exact or not torch.is_grad_enabled():
        return torch.matrix_exp(x)
    x = x / 2**_SQUARINGS
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    square = x @ x
    cube = square @ x
    found = one + x + square / 2 + cube @ (one / 6 + x / 24 + square / 120 + cube / 720)
    for _ in range(_SQUARINGS):
        found = found @ found
    return found
