"""The quick exponential is torch's, and so is its gradient; exact ones are torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isobasin.symmetries.exponential import _iterated, exponential, inverse


@pytest.mark.parametrize("norm", [0.0, 0.1, 3.0, 15.0])
@pytest.mark.parametrize("skew", [False, True])
def test_the_quick_one_is_the_exact_one(norm, skew):
    x = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mT if skew else x
    x = (norm * x / torch.linalg.matrix_norm(x, 2)[:, None, None]).requires_grad_()
    quick = x.detach().float().requires_grad_()
    one, other = exponential(quick), exponential(x)
    assert torch.equal(other, torch.matrix_exp(x))
    scale = float(other.detach().abs().max())
    torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-5 * scale)
    way = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (slope,) = torch.autograd.grad((one * way.float()).sum(), quick)
    (expected,) = torch.autograd.grad((other * way).sum(), x)
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_without_a_gradient_it_is_exact():
    x = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        assert torch.equal(exponential(x), torch.matrix_exp(x))


def test_layers_that_move_together_take_the_quick_one():
    """`vmap` hides that a gradient is wanted."""

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with Seen() as seen:
        together = torch.vmap(exponential)(x)
        together.sum().backward()
    assert "aten.linalg_matrix_exp.default" not in seen.names
    torch.testing.assert_close(together, torch.matrix_exp(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", [1.0, 10.0, 300.0])
def test_an_inverse_by_products_is_the_inverse_and_so_is_its_gradient(condition):
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)).Q for _ in range(2)]
    sizes = torch.logspace(0, -math.log10(condition), 12, dtype=torch.float64)
    exact = (turns[0] * sizes @ turns[1]).requires_grad_()
    quick = exact.detach().float().requires_grad_()
    one, other = _iterated(quick), inverse(exact)
    assert torch.equal(other, torch.linalg.inv(exact))
    scale = float(other.detach().abs().max())
    torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * condition * scale)
    way = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((one * way.float()).sum(), quick)
    (expected,) = torch.autograd.grad((other * way).sum(), exact)
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=1e-5 * condition * float(expected.abs().max()))
