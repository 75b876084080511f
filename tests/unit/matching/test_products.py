"""Products of rows in either precision, whichever library makes them."""

from __future__ import annotations

import pytest
import torch

from isobasin.matching import products
from isobasin.matching.products import dots, pieces, squares, with_rows


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (300, 64), (0, 7), (5, 0)])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_products_are_those_of_the_rows(
    shape: tuple[int, int], count: int, dtype: torch.dtype, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(shape[1], count, generator=draw, dtype=torch.float64).mT
    right = torch.randn(shape, generator=draw, dtype=torch.float64)
    found = with_rows(right, dtype)(left)
    assert found.dtype is dtype
    exact, sizes = left @ right.mT, left.norm(dim=-1)[:, None] * right.norm(dim=-1)
    assert bool(((found - exact).abs() <= shape[1] * torch.finfo(dtype).eps * sizes).all())


def test_they_are_exact_where_torch_may_multiply_floats_less_exactly(monkeypatch: pytest.MonkeyPatch):
    left, right = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (3, 5))
    assert with_rows(right)(left).dtype is torch.float32
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert torch.equal(with_rows(right)(left), left @ right.mT)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (1, 30), (0, 3), (3, 0), (4, 2, 3), ()])
def test_sums_are_the_same_some_rows_at_a_time(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "_NUMBERS", 6)
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    assert squares(x) == pytest.approx(float((x * x).sum()), rel=1e-14)
    assert squares(x, y) == pytest.approx(float((x - y).square().sum()), rel=1e-14)
    if len(shape) == 2:
        assert max(map(torch.Tensor.numel, pieces(x))) <= max(6, shape[1])
        assert torch.allclose(dots(x, y), (x * y).sum(-1), rtol=1e-14, atol=0)
        turned = x.mT, y.mT
        assert torch.allclose(dots(*turned), (x * y).sum(0), rtol=1e-14, atol=1e-15)
