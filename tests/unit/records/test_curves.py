import math
from typing import Any

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
    batch_weights=(3.0, 1.0),
    settings={},
    versions={},
)


def points(losses: Any, method: str = "none", **lists: Any) -> list[PointRecord]:
    """One point for every t; the batches have the mean's losses unless `batches` says otherwise."""
    batches = lists.get("batches", [(loss, loss) for loss in losses])
    calibrated = lists.get("calibrated", [None] * len(losses))
    return [
        PointRecord(
            pair=(0, 1),
            method=method,
            t=t,
            loss=loss,
            batch_losses=tuple(batch),
            metrics={},
            calibrated_loss=least,
            temperature=None,
            seconds=0.5,
            interpolation_seconds=0.125,
        )
        for t, loss, batch, least in zip(T, losses, batches, calibrated, strict=True)
    ]


def test_a_curve_by_hand():
    # The line between the ends is 1, 1.5, 2, 3: the loss rises by 0.5 and then by 2 above it.
    batches = [(1.0, 1.0), (2.0, 2.0), (3.5, 5.5), (3.0, 3.0)]
    found = curve(RUN, points((1.0, 2.0, 4.0, 3.0), batches=batches, calibrated=(1.0, 2.75, 2.5, 3.0)))
    # Rises of the batches 1.5 and 3.5, mean 0.75 * 1.5 + 0.25 * 3.5 = 2, deviations -0.5 and 1.5;
    # 2 / 1 * ((0.75 * 0.5)**2 + (0.25 * 1.5)**2) = 0.5625.
    assert found == CurveRecord(
        pair=(0, 1),
        method="none",
        barrier=2.0,
        worst_t=0.5,
        barrier_error=0.75,
        relative=1.0,
        share_of_ends=1.0,
        calibrated_barrier=1.25,
        calibrated_worst_t=0.25,
        overhead=0.25,
    )


def test_equal_batches_have_the_usual_standard_error():
    run = RUN.model_copy(update={"batch_weights": (5.0,) * 4})
    rises = (1.0, 2.0, 4.0, 5.0)
    batches = [(0.0,) * 4, (0.0,) * 4, rises, (0.0,) * 4]
    found = curve(run, points((0.0, 0.0, 3.0, 0.0), batches=batches))
    deviation = math.sqrt(sum((rise - 3) ** 2 for rise in rises) / 3)
    assert found.barrier_error == pytest.approx(deviation / 2, rel=1e-12)


def test_the_error_is_of_the_rise_and_not_of_the_loss():
    # The batches differ by far, but by as much everywhere.
    batches = [(1.0, 9.0), (2.0, 10.0), (4.0, 12.0), (1.0, 9.0)]
    assert curve(RUN, points((3.0, 4.0, 6.0, 3.0), batches=batches)).barrier_error == 0


def test_one_batch_has_no_error():
    run = RUN.model_copy(update={"batch_weights": (4.0,)})
    assert curve(run, points((0.0, 1.0, 0.0, 0.0), batches=[(0.0,), (1.0,), (0.0,), (0.0,)])).barrier_error is None


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


def test_a_batch_that_is_not_a_number_leaves_no_error():
    batches = [(0.0, 0.0), (0.0, None), (1.0, 1.0), (0.0, 0.0)]
    assert curve(RUN, points((0.0, 0.0, 1.0, 0.0), batches=batches)).barrier_error == 0
    batches[2] = (1.0, None)
    assert curve(RUN, points((0.0, 0.0, 1.0, 0.0), batches=batches)).barrier_error is None


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
