import math

import pytest

from isobasin.connectivity.barrier import Barrier, barrier
from isobasin.connectivity.path import points


def test_a_parabolic_bump_has_its_height_at_its_top():
    # The line falls from 3 to 1; the bump 4 t (1 - t) tops at 1/2, which is one of 25 points.
    t = points()
    found = barrier([3 - 2 * x + 4 * x * (1 - x) for x in t], t)
    assert found.t == 0.5
    assert found.height == pytest.approx(1, abs=1e-12)


def test_an_end_that_is_worse_is_no_barrier():
    t = points()
    assert barrier([5 * x for x in t], t).height == pytest.approx(0, abs=1e-12)


def test_a_convex_path_has_barrier_zero():
    t = points()
    assert barrier([(x - 0.3) ** 2 for x in t], t) == Barrier(0.0, 0.0)


def test_t_counts_from_the_first_model():
    assert barrier([0.0, 0.0, 2.0, 0.0], [0, 0.25, 0.75, 1]) == Barrier(2.0, 0.75)
    assert barrier([0.0, 4.0, 2.0, 8.0], [0, 0.25, 0.75, 1]) == Barrier(2.0, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_infinite_barrier(bad: float):
    assert barrier([0.0, 9.0, bad, 0.0], [0, 0.25, 0.75, 1]) == Barrier(math.inf, 0.75)


@pytest.mark.parametrize(
    ("losses", "t"),
    [
        ([1.0, 2.0], [0, 0.5, 1]),
        ([1.0], [0]),
        ([1.0, 2.0], [0, 0.9]),
        ([1.0, 2.0], [0.1, 1]),
        ([1.0, 2.0, 3.0, 4.0], [0, 0.6, 0.4, 1]),
        ([math.nan, 2.0], [0, 1]),
        ([1.0, math.inf], [0, 1]),
    ],
)
def test_what_is_no_path_is_refused(losses: list[float], t: list[float]):
    with pytest.raises(ValueError, match=r"points|finite"):
        barrier(losses, t)
