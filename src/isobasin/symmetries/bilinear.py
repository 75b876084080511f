"""The group of one head's bilinear pair, GL(n) × (C*)^p, and how it acts.

A pair `(L, R)` (Q and K, or V and O) enters the function only through `L R^T`, and on rotated planes only
through `l_p k_p^H` of the complex columns `l_p = L[:, a] + i L[:, b]`. An element `(U, u)` acts as

    linear features:   L <- L U^T,     R <- R U^{-1}
    plane p:           l <- l u_p,     r <- r / conj(u_p)

(arXiv 2606.17830, Theorems 2.1, 4.1, 4.2). All functions are pure, batched over leading dimensions and
compute in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isobasin.symmetries.groups import BilinearGroup


@dataclass(frozen=True)
class BilinearElement:
    """An element of `BilinearGroup`, or a batch of them.

    Attributes:
        matrix: U on the linear features, `(..., n, n)` float64; n may be 0.
        planes: u on the planes, `(..., p)` complex128; p may be 0.
    """

    matrix: Tensor
    planes: Tensor


def linear_part(group: BilinearGroup, x: Tensor) -> Tensor:
    """The unrotated columns of `x`, `(..., rows, n)`."""
    return x if not group.planes else x[..., group.columns[0]]


def plane_part(group: BilinearGroup, x: Tensor) -> Tensor:
    """The planes of `x` as complex columns `x[:, a] + i x[:, b]`, `(..., rows, p)`."""
    _, real, imaginary = group.columns
    return torch.complex(x[..., real], x[..., imaginary])


def join(group: BilinearGroup, linear: Tensor, planes: Tensor) -> Tensor:
    """The inverse of (`linear_part`, `plane_part`): columns back in their places."""
    if not group.planes:
        return linear
    rest, real, imaginary = group.columns
    out = linear.new_empty(*linear.shape[:-1], group.features)
    out[..., rest], out[..., real], out[..., imaginary] = linear, planes.real, planes.imag
    return out


def column_squares(x: Tensor) -> Tensor:
    """Squared norm of every column, real or complex, `(..., columns)`."""
    # The absolute value of a complex number costs a hypot, which is many times slower.
    parts = torch.view_as_real(x.resolve_conj()).square().sum(-1) if x.is_complex() else x.square()
    return parts.sum(-2)


def identity(group: BilinearGroup, batch: tuple[int, ...], device: torch.device | str = "cpu") -> BilinearElement:
    """The identity element."""
    n, p = len(group.linear), len(group.planes)
    matrix = torch.eye(n, dtype=torch.float64, device=device).expand(*batch, n, n).clone()
    return BilinearElement(matrix, torch.ones(*batch, p, dtype=torch.complex128, device=device))


def compose(second: BilinearElement, first: BilinearElement) -> BilinearElement:
    """The element that acts as `first` and then `second`: `U = U_2 U_1`, `u = u_2 u_1`."""
    return BilinearElement(second.matrix @ first.matrix, second.planes * first.planes)


def inverse(element: BilinearElement) -> BilinearElement:
    """The inverse element."""
    return BilinearElement(torch.linalg.inv(element.matrix), 1 / element.planes)


def act_left(group: BilinearGroup, element: BilinearElement, x: Tensor) -> Tensor:
    """`L <- L U^T`, `l <- l u`.

    Args:
        group: The group.
        element: Of batch shape `*batch`.
        x: `(*batch, rows, features)`.
    """
    linear = linear_part(group, x) @ element.matrix.mT
    if not group.planes:
        return linear
    return join(group, linear, plane_part(group, x) * element.planes.unsqueeze(-2))


def act_right(group: BilinearGroup, element: BilinearElement, x: Tensor) -> Tensor:
    """`R <- R U^{-1}`, `r <- r / conj(u)`; arguments as `act_left`."""
    linear = torch.linalg.solve(element.matrix, linear_part(group, x), left=False)
    if not group.planes:
        return linear
    return join(group, linear, plane_part(group, x) / element.planes.conj().unsqueeze(-2))


def sample(
    group: BilinearGroup, batch: tuple[int, ...], generator: torch.Generator, condition: float = 10.0
) -> BilinearElement:
    """Random elements whose condition number is `condition` (at most that on planes).

    `U = P diag(σ) W` with Haar-random orthogonal P, W and ln σ evenly spread over ±½ ln(condition);
    `u = exp(r + iφ)` with r uniform on ±½ ln(condition) and φ uniform.
    """
    n, p = len(group.linear), len(group.planes)
    half = 0.5 * math.log(condition)

    def orthogonal() -> Tensor:
        q, r = torch.linalg.qr(torch.randn(*batch, n, n, generator=generator, dtype=torch.float64))
        return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)

    scales = torch.linspace(-half, half, n, dtype=torch.float64).exp()
    uniform = torch.rand(2, *batch, p, generator=generator, dtype=torch.float64)
    planes = torch.polar(((2 * uniform[0] - 1) * half).exp(), 2 * math.pi * uniform[1])
    return BilinearElement(orthogonal() * scales @ orthogonal(), planes)


def condition(element: BilinearElement) -> Tensor:
    """Condition number of U as a matrix on all features, `(...)`: largest over smallest singular value."""
    sizes = torch.cat([torch.linalg.svdvals(element.matrix), element.planes.abs()], dim=-1)
    return sizes.amax(-1) / sizes.amin(-1)


def as_matrix(group: BilinearGroup, element: BilinearElement) -> Tensor:
    """U as one real matrix on all features, `(..., features, features)`, so that `L <- L U^T`."""
    eye = torch.eye(group.features, dtype=torch.float64, device=element.matrix.device)
    return act_left(group, element, eye.expand(*element.matrix.shape[:-2], -1, -1)).mT
