"""Lines to what earlier commands wrote, beside those of the same two models as they are."""

from pathlib import Path

import pytest
from measured_models import Models

from isobasin import align
from isobasin.beside import REFERENCE
from isobasin.choices import Scope
from isobasin.errors import AlignmentError, IsobasinError
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.records.file import Measured
from isobasin.refinement.recipe import Refining
from isobasin.refinement.refine import refine
from isobasin.verbs.settings import Running

_ENDS = ((0, 1), "none")


@pytest.fixture(scope="module")
def moved(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `matched`, attention alone, and `refined`, both models as wholes."""
    folder = tmp_path_factory.mktemp("moved")
    align(models.a, models.c, folder / "matched")
    how = Refining(2, 8, both=True, minutes=0)
    refine(models.a, models.c, models.examples(), folder / "refined", how=how, running=Running(verify=False))
    return folder


@pytest.fixture(scope="module")
def found(models: Models, moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    how = Measuring(("none", "gauss-newton"), points=3)
    given = [str(moved / name) for name in ("matched", "refined")]
    out = tmp_path_factory.mktemp("measured")
    return measure([models.a, models.c], models.examples(), out, how, aligned=given)


def losses(found: Measured, method: str) -> list[float | None]:
    return [point.loss for point in found.points[(0, 1), method]]


def test_one_run_has_the_lines_of_models_as_they_are_and_as_they_were_moved(found: Measured):
    assert found.run.methods == ("none", "gauss-newton", "matched", "refined")
    matched, refined = found.run.aligned
    assert (matched.method, matched.how, matched.reference) == ("matched", "gauss-newton", None)
    assert (refined.method, refined.how) == ("refined", "refine")
    assert refined.reference is not None
    assert len({x.sha256 for x in (*found.run.models, matched.model, refined.model, refined.reference)}) == 5
    assert found.curves.keys() == {((0, 1), method) for method in found.run.methods}
    for method in found.run.methods:
        ends, naive = losses(found, method)[::2], losses(found, "none")[::2]
        assert ends == pytest.approx(naive, rel=1e-4)


def test_a_line_to_what_was_aligned_before_is_that_of_aligning_now(found: Measured):
    assert losses(found, "matched") == pytest.approx(losses(found, "gauss-newton"), rel=1e-5)
    now, before = (found.alignments[(0, 1), method] for method in ("gauss-newton", "matched"))
    for one, other in zip(now.layers, before.layers, strict=True):
        assert other.head_permutation == one.head_permutation
        assert other.distance_before == pytest.approx(one.distance_before, rel=1e-5)
        assert other.distance_after == pytest.approx(one.distance_after, rel=1e-5)
        for row, expected in zip(other.head_costs, one.head_costs, strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
    assert (before.feedforward, before.stream) == ((), None)


def test_where_both_were_moved_the_line_is_between_the_two(
    found: Measured, models: Models, moved: Path, tmp_path: Path
):
    ends = [moved / "refined" / REFERENCE, moved / "refined"]
    alone = measure(ends, models.examples(), tmp_path / "alone", Measuring(("none",), points=3))
    assert losses(found, "refined") == pytest.approx(losses(alone, "none"), rel=1e-6)
    assert losses(found, "refined")[1] != pytest.approx(losses(found, "matched")[1], rel=1e-3)


def test_units_and_stream_are_recorded_where_they_move(found: Measured, models: Models, tmp_path: Path):
    align(models.a, models.c, tmp_path / "whole", scope="model")
    how = Measuring(("none", "gauss-newton"), points=2, scope=Scope.model)
    both = measure([models.a, models.c], models.examples(), tmp_path / "out", how, aligned=[str(tmp_path / "whole")])
    refined, now, before = (
        run.alignments[(0, 1), method] for run, method in ((found, "refined"), (both, "gauss-newton"), (both, "whole"))
    )
    for one in (refined, now, before):
        assert [row.block for row in one.feedforward] == ["0", "1"]
        assert all(0 < row.moved_units <= row.units == 24 for row in one.feedforward)
        assert one.stream is not None
        assert (one.stream.group, one.stream.width) == ("O(15)", 16)
        assert one.stream.condition == pytest.approx(1)
    for one, other in zip((*now.layers, *now.feedforward), (*before.layers, *before.feedforward), strict=True):
        assert other.distance_after == pytest.approx(one.distance_after, rel=1e-5)
    assert now.stream is not None
    assert before.stream is not None
    assert before.stream.distance_before == pytest.approx(now.stream.distance_before, rel=1e-5)
    assert before.stream.distance_after == pytest.approx(now.stream.distance_after, rel=1e-5)


def test_what_is_no_line_between_the_two_is_refused(models: Models, moved: Path, tmp_path: Path):
    examples, how, out = models.examples(), Measuring(("none",), points=2), tmp_path / "out"
    matched = str(moved / "matched")
    with pytest.raises(AlignmentError, match=r"matched: doesn't compute what .*/a does \(outputs differ"):
        measure([models.c, models.a], examples, out, how, aligned=[matched])
    with pytest.raises(IsobasinError, match="it is a line between two models, and 3 are given"):
        measure([models.a, models.b, models.c], examples, out, how, aligned=[matched])
    with pytest.raises(IsobasinError, match="another line is called so: give a folder once"):
        measure([models.a, models.c], examples, out, how, aligned=[matched, matched])
    with pytest.raises(AlignmentError, match="alignment"):
        measure([models.a, models.c], examples, out, how, aligned=[str(models.b / "config.json")])
    assert not out.exists()
