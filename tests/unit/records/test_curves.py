import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from isobasin.records.curves import Barrier, chosen_rank, curve, finished_curves, height
from isobasin.records.file import Measured
from isobasin.records.schema import CurveRecord, DataRecord, ModelRecord, PointRecord, RunRecord

T = (0.0, 0.25, 0.5, 1.0)
RUN = RunRecord(
    models=tuple(ModelRecord(name=name, sha256=name) for name in "abc"),
    data=DataRecord(source="s", split=None, task="causal-lm", examples=4, sha256="d"),
    t=T,
    methods=("gauss-newton", "none"),
    group_weights=(3.0, 1.0),
    settings={},
    versions={},
)


def points(losses: Any, method: str = "none", **lists: Any) -> list[PointRecord]:
    """One point for every t; the groups of examples have the mean's losses unless `groups` says otherwise."""
    groups = lists.get("groups", [(loss, loss) for loss in losses])
    calibrated = lists.get("calibrated", [None] * len(losses))
    return [
        PointRecord(
            pair=(0, 1),
            method=method,
            t=t,
            loss=loss,
            group_losses=tuple(group),
            metrics={},
            calibrated_loss=least,
            temperature=None,
            seconds=0.5,
            interpolation_seconds=0.125,
        )
        for t, loss, group, least in zip(T, losses, groups, calibrated, strict=True)
    ]


def test_a_curve_by_hand():
    # The line between the ends is 1, 1.5, 2, 3: the loss rises by 0.5 and then by 2 above it.
    groups = [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (3.0, 3.0)]
    found = curve(RUN, points((1.0, 2.0, 4.0, 3.0), groups=groups, calibrated=(1.0, 2.75, 2.5, 3.0)))
    assert found == CurveRecord(
        pair=(0, 1),
        method="none",
        barrier=2.0,
        worst_t=0.5,
        barrier_error=0.0,
        loss_errors=(0.0,) * 4,
        relative=1.0,
        share_of_ends=1.0,
        calibrated_barrier=1.25,
        calibrated_worst_t=0.25,
        overhead=0.25,
    )


def many(weights: Sequence[float]) -> RunRecord:
    return RUN.model_copy(update={"group_weights": tuple(weights)})


def lines(losses: Any, weights: Any) -> list[PointRecord]:
    """Points from the losses `(t, example)` of examples that count for so much."""
    return points(np.average(losses, axis=1, weights=weights).tolist(), groups=losses.tolist())


def test_examples_that_differ_at_one_point_have_the_usual_standard_error():
    draw = np.random.default_rng(1)
    losses = np.zeros((4, 400))
    losses[2] = draw.exponential(size=400)
    found = curve(many([5.0] * 400), lines(losses, [5.0] * 400))
    assert found.barrier_error == pytest.approx(losses[2].std(ddof=1) / 20, rel=0.08)
    # Some count for far more than others: the error of a ratio.
    weights = np.where(np.arange(400) < 40, 20.0, 1.0)
    shares, mean = weights / weights.sum(), np.average(losses[2], weights=weights)
    expected = math.sqrt(((shares * (losses[2] - mean)) ** 2).sum())
    assert curve(many(weights), lines(losses, weights)).barrier_error == pytest.approx(expected, rel=0.08)


def test_the_losses_of_all_points_have_their_standard_errors():
    losses = np.random.default_rng(2).exponential([[1.0], [3.0], [2.0], [0.5]], size=(4, 300))
    found = curve(many([2.0] * 300), lines(losses, [2.0] * 300))
    assert found.loss_errors == pytest.approx(losses.std(1, ddof=1) / math.sqrt(300), rel=0.08)
    lost = losses.tolist()
    lost[1][7] = None
    point = points([1.0, None, 1.0, 1.0], groups=lost)
    assert [error is None for error in curve(many([2.0] * 300), point).loss_errors] == [False, True, False, False]
    assert curve(many([4.0]), points((0.0, 1.0, 0.0, 0.0), groups=[(0.0,)] * 4)).loss_errors == (None,) * 4


def test_the_error_is_of_the_barrier_and_not_of_the_loss():
    # The examples differ by far, but by as much everywhere.
    losses = np.array([[1.0], [2.0], [4.0], [1.0]]) + 9 * np.random.default_rng(0).normal(size=50)
    assert curve(many([1.0] * 50), lines(losses, [1.0] * 50)).barrier_error == pytest.approx(0, abs=1e-12)


def test_where_the_barrier_is_may_differ_between_drawn_examples():
    losses = np.zeros((4, 100))
    # Either point would be the worst by half of the examples: their maximum scatters less than each of them.
    losses[1, :50], losses[2, 50:] = 1, 1
    found = curve(many([1.0] * 100), lines(losses, [1.0] * 100)).barrier_error
    # Of k of 100 examples, k / 100 or 1 - k / 100: 0.05 times the deviation of |z| for normal z.
    assert found == pytest.approx(0.05 * math.sqrt(1 - 2 / math.pi), rel=0.1)


def test_one_example_has_no_error():
    found = curve(many([4.0]), points((0.0, 1.0, 0.0, 0.0), groups=[(0.0,), (1.0,), (0.0,), (0.0,)]))
    assert found.barrier_error is None


def test_relative_to_the_naive_barrier():
    naive = curve(RUN, points((0.0, 2.0, 1.0, 0.0)))
    moved = points((0.0, 0.5, 0.0, 0.0), "gauss-newton")
    assert curve(RUN, moved, naive).relative == 0.25
    assert curve(RUN, moved).relative is None
    assert naive.relative == 1
    flat = curve(RUN, points((0.0, 0.0, 0.0, 0.0)))
    assert (flat.barrier, flat.worst_t, flat.relative, flat.share_of_ends) == (0, 0, None, None)
    assert curve(RUN, moved, flat).relative is None


@pytest.mark.parametrize("where", range(4))
def test_a_loss_that_is_not_a_number_leaves_no_barrier_and_is_named(where: int):
    losses: list[float | None] = [1.0, 9.0, 1.0, 1.0]
    losses[where] = None
    lost = curve(RUN, points(losses))
    assert (lost.barrier, lost.worst_t, lost.barrier_error, lost.relative, lost.share_of_ends) == (
        None,
        T[where],
        None,
        None,
        None,
    )
    assert curve(RUN, points((1.0, 2.0, 1.0, 1.0), "gauss-newton"), lost).relative is None
    calibrated = curve(RUN, points((1.0, 2.0, 1.0, 1.0), calibrated=losses))
    assert (calibrated.barrier, calibrated.calibrated_barrier, calibrated.calibrated_worst_t) == (1.0, None, T[where])


def test_an_example_that_is_not_a_number_leaves_no_error_unless_it_has_no_predictions():
    groups = [(0.0, 0.0, None), (0.0, 0.0, None), (1.0, 1.0, None), (0.0, 0.0, None)]
    assert curve(many([1.0, 1.0, 0.0]), points((0.0, 0.0, 1.0, 0.0), groups=groups)).barrier_error == 0
    assert curve(many([1.0, 1.0, 1.0]), points((0.0, 0.0, 1.0, 0.0), groups=groups)).barrier_error is None


def test_a_curve_needs_all_points_of_one_line():
    whole = points((0.0, 1.0, 1.0, 0.0))
    other = points((0.0, 1.0, 1.0, 0.0), "gauss-newton")
    for bad in (whole[:-1], [*whole, whole[-1]], whole[::-1], [*whole[:-1], other[-1]], []):
        with pytest.raises(ValueError, match="4 points of one line"):
            curve(RUN, bad)


def test_finished_curves_are_those_with_all_points_and_relative_to_their_own_naive_one():
    whole, moved = points((0.0, 2.0, 1.0, 0.0)), points((0.0, 0.5, 0.0, 0.0), "gauss-newton")
    # The naive line comes last here, and is needed first.
    measured = Measured(RUN, {((0, 1), "gauss-newton"): moved, ((0, 1), "none"): whole, ((0, 2), "none"): whole[:3]})
    found = finished_curves(measured)
    assert set(found) == {((0, 1), "none"), ((0, 1), "gauss-newton")}
    assert found[(0, 1), "gauss-newton"].relative == 0.25


def test_height_is_the_largest_rise_above_the_line():
    assert height([1.0, 2.0, 4.0, 3.0], T) == Barrier(2.0, 0.5)
    assert height([5.0, 1.0, 1.0, 1.0], T) == Barrier(0.0, 0.0)
    assert height([0.0, 1.0, math.nan, 0.0], T) == Barrier(math.inf, 0.5)
    for losses, t in (([1.0, 2.0], T), ([1.0], [0.0]), ([1.0, 2.0], [0.0, 0.9]), ([math.nan, 2.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match=r"points|finite"):
            height(losses, t)


def test_the_rank_of_the_chosen_one_counts_lower_barriers_only():
    barriers = [0.2, 0.0, 0.2, None, 0.3]
    ranks = [
        chosen_rank([{"barrier": barrier, "chosen": i == at} for i, barrier in enumerate(barriers)]) for at in range(5)
    ]
    assert ranks == [2, 1, 2, 5, 4]
