"""Where the descents of heads that are far from each other begin."""

import math

import pytest
import torch
from torch import Tensor

from isobasin.matching import subspace


def factors(heads: int, rank: int, n: int = 8, seed: int = 0) -> list[Tensor]:
    """Unrelated tall factors of heads of some rank."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(heads, 32, rank, generator=generator, dtype=torch.float64)
        @ torch.randn(heads, rank, n, generator=generator, dtype=torch.float64)
        for _ in range(4)
    ]


def test_polynomials_come_next_to_the_polar_factor():
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = x * torch.logspace(-20, 20, 5, dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(subspace._near_polar(scaled), subspace.polar(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e12])
def test_newtons_iteration_comes_to_the_polar_factor(condition: float):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    x = 1e5 * (one * torch.logspace(0, -math.log10(condition), 40, dtype=torch.float64)) @ other
    found = subspace._iterated_polar(x)
    assert found is not None
    torch.testing.assert_close(found @ found.mT, torch.eye(40, dtype=torch.float64), atol=1e-13, rtol=0)
    torch.testing.assert_close(found, one @ other, atol=1e-14 * condition, rtol=0)


def test_newtons_iteration_says_where_it_does_not_end():
    assert subspace._iterated_polar(torch.zeros(6, 6, dtype=torch.float64)) is None


def test_the_published_start_is_the_polar_factor():
    core = subspace.reduce(*factors(16, rank=8))
    _, published = subspace._starts(core)
    torch.testing.assert_close(published, subspace.orthogonal_start(core), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_starts_of_heads_without_full_rank_are_invertible(rank: int):
    ranks = [rank, 8, rank]
    parts = [torch.cat(x) for x in zip(*(factors(2, rank=r, seed=i) for i, r in enumerate(ranks)), strict=True)]
    core = subspace.reduce(*parts)
    lowest, published = subspace._starts(core)
    torch.testing.assert_close(
        published @ published.mT, torch.eye(8, dtype=torch.float64).expand(6, 8, 8), atol=1e-3, rtol=0
    )
    assert torch.isfinite(core.objective(lowest)).all()
    found = subspace.gauss_newton(core)
    assert torch.isfinite(torch.linalg.cond(found.matrix)).all()
    assert (found.objective <= core.objective(subspace.orthogonal_start(core)) * (1 + 1e-9)).all()
