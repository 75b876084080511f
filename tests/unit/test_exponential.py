"""The quick exponential is torch's, and so is its gradient; exact ones are torch's own."""

from __future__ import annotations

import pytest
import torch

from isobasin.symmetries.exponential import exponential


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
