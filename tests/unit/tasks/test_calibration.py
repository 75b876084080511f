"""The best softmax temperature, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from isobasin.tasks.calibration import HIGHEST, LOWEST, Predictions, solve


def sample(count, classes, sharpness, seed=0, scale=2.0, offset=0.0):
    """Logits whose best inverse temperature is about `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, classes, generator=generator, dtype=torch.float64) * scale
    y = torch.multinomial(torch.softmax(z * sharpness, -1), 1, generator=generator).squeeze(-1)
    return z + offset, y


def mean_of(z, y):
    kept = Predictions.of(z.clone(), y, 0.0)
    return lambda beta: tuple(s / len(y) for s in kept.sums(beta))


def brute_force(z, y):
    def loss(log_beta):
        return float(functional.cross_entropy(z.double() * math.exp(log_beta), y))

    grid = torch.linspace(math.log(LOWEST), math.log(HIGHEST), 400).tolist()
    best = min(grid, key=loss)
    found = minimize_scalar(loss, bounds=(best - 0.05, best + 0.05), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x), found.fun


@pytest.mark.parametrize("beta", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_derivatives(beta, offset):
    z, y = sample(300, 7, 1.0, offset=offset)
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    value = functional.cross_entropy(z * b, y, reduction="sum")
    (slope,) = torch.autograd.grad(value, b)
    found = Predictions.of(z.clone(), y, 0.0).sums(beta)
    assert found == pytest.approx([value.item(), slope.item()], rel=1e-8 if not offset else 1e-6)


@pytest.mark.parametrize("sharpness", [0.02, 0.2, 0.7, 1.0, 1.5, 8.0])
@pytest.mark.parametrize(("count", "classes"), [(400, 2), (3000, 10), (500, 300)])
def test_the_minimum(sharpness, count, classes):
    z, y = sample(count, classes, sharpness)
    calls = []
    beta, value = solve(lambda b: calls.append(b) or mean_of(z, y)(b))
    assert len(calls) < 20
    wanted, least = brute_force(z, y)
    assert beta == pytest.approx(wanted, rel=1e-4)
    assert value == pytest.approx(least, abs=1e-8)


def test_in_float32():
    z, y = sample(3000, 50, 0.6)
    beta, value = solve(mean_of(z.float(), y))
    wanted, least = brute_force(z, y)
    assert beta == pytest.approx(wanted, rel=1e-3)
    assert value == pytest.approx(least, abs=1e-6)


def test_a_model_that_is_never_wrong():
    z = torch.eye(10, dtype=torch.float64) * 3
    calls = []
    beta, value = solve(lambda b: calls.append(b) or mean_of(z, torch.arange(10))(b))
    assert 5 < beta <= HIGHEST
    assert 0 <= value < 1e-6
    assert len(calls) < 25


def test_a_model_that_is_worse_than_chance():
    z = -torch.eye(10, dtype=torch.float64) * 3
    beta, value = solve(mean_of(z, torch.arange(10)))
    assert beta == LOWEST
    assert value == pytest.approx(math.log(9 + math.exp(-0.03)) + 0.03, rel=1e-12)


def test_logits_that_say_nothing():
    z = torch.zeros(20, 5, dtype=torch.float64)
    _, value = solve(mean_of(z, torch.zeros(20, dtype=torch.int64)))
    assert value == pytest.approx(math.log(5))


def test_logits_that_are_ruled_out():
    z, y = sample(200, 8, 0.5)
    z[:, 7] = -torch.inf
    y[y == 7] = 0
    beta, value = solve(mean_of(z, y))
    wanted, least = brute_force(z[:, :7], y)
    assert (beta, value) == pytest.approx((wanted, least), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_numbers(bad):
    z, y = sample(20, 5, 1.0)
    z[3, 2] = bad
    assert all(map(math.isnan, solve(mean_of(z, y))))
