import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from isobasin.errors import OutputError, RecordError
from isobasin.records.file import Measured, RecordFile
from isobasin.records.schema import (
    AlignmentRecord,
    CurveRecord,
    DataRecord,
    LayerRecord,
    ModelRecord,
    PointRecord,
    RunRecord,
)


def run(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "models": tuple(ModelRecord(name=name, sha256=name * 8) for name in "ab"),
        "data": DataRecord(source="digits", split=None, task="causal-lm", examples=7, sha256="d"),
        "t": (0.0, 1 / 3, 1.0),
        "methods": ("none", "paper"),
        "group_weights": (4.0, 3.0),
        "settings": {"seed": 0, "nested": {"rate": 0.1}},
        "versions": {"isobasin": "0.1.0"},
    }
    return RunRecord(**{**values, **changes})


def point(t: float, **changes: Any) -> PointRecord:
    values: dict[str, Any] = {
        "pair": (0, 1),
        "method": "none",
        "t": t,
        "loss": 1.25,
        "group_losses": (1.0, 1.6),
        "metrics": {"accuracy": 0.5},
        "calibrated_loss": 1.125,
        "temperature": 2.0,
        "seconds": 0.5,
        "interpolation_seconds": 0.125,
    }
    return PointRecord(**{**values, **changes})


def layer(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {
        "layer": 0,
        "distance_before": 3.0,
        "distance_after": 1.0,
        "condition": 7.5,
        "iterations": 4,
        "status": "converged",
        "head_permutation": (1, 0),
        "head_costs": ((0.5, 0.25), (0.125, 1.0)),
    }
    return LayerRecord(**{**values, **changes})


ALIGNED = AlignmentRecord(pair=(0, 1), method="paper", seconds=0.5, layers=(layer(),))
CURVE = CurveRecord(
    pair=(0, 1),
    method="none",
    barrier=0.5,
    worst_t=1 / 3,
    barrier_error=0.1,
    relative=1.0,
    share_of_ends=0.25,
    calibrated_barrier=None,
    calibrated_worst_t=None,
    overhead=0.25,
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file of a run, an alignment, two points and a curve, in the folder that is given."""
    file = RecordFile(tmp_path)
    for record in (run(), ALIGNED, point(1.0), point(1 / 3), CURVE):
        file.append(record)
    return tmp_path / "records.jsonl"


def test_what_was_appended_is_read_again(written: Path):
    expected = Measured(
        run(),
        {((0, 1), "none"): [point(1 / 3), point(1.0)]},
        {((0, 1), "paper"): ALIGNED},
        {((0, 1), "none"): CURVE},
    )
    assert RecordFile.read(written) == expected
    assert RecordFile.read(written.parent) == expected
    assert RecordFile(written).measured == expected
    assert [json.loads(line)["kind"] for line in written.read_text().splitlines()] == [
        "run",
        "alignment",
        "point",
        "point",
        "curve",
    ]


def test_a_new_file_says_nothing_and_its_folder_is_made(tmp_path: Path):
    file = RecordFile(tmp_path / "new" / "folder")
    assert file.path == tmp_path / "new" / "folder" / "records.jsonl"
    assert file.measured is None
    file.append(run())
    assert RecordFile(file.path).measured == Measured(run())


def test_what_a_kill_leaves_of_the_last_line_is_dropped_wherever_it_cuts(written: Path):
    whole = written.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        written.write_bytes(whole[:cut])
        file = RecordFile(written)
        assert file.measured is not None
        assert file.measured.curves == {}
        assert written.read_bytes() == whole[:cut]
        file.append(CURVE)
        assert written.read_bytes() == whole


@pytest.mark.parametrize(
    ("index", "old", "new"),
    [
        (2, '"loss":1.25', '"loss":0.25'),
        (2, '"pair":[0,1]', '"pair": [0,1]'),
        (2, '"checksum":"', '"checksum":"0'),
        (2, '"checksum"', '"doubtsum"'),
        (0, '"seed":0', '"seed":1'),
        (0, '"checksum":', '"checksum": '),
        (4, '"barrier":0.5', '"barrier":0.25'),
    ],
)
def test_a_line_that_was_edited_is_refused(index: int, old: str, new: str, written: Path):
    lines = written.read_text().splitlines(keepends=True)
    assert old in lines[index]
    lines[index] = lines[index].replace(old, new)
    written.write_text("".join(lines))
    with pytest.raises(RecordError) as caught:
        RecordFile.read(written)
    said = f"{written}: line {index + 1} was edited: its checksum isn't right: restore the file"
    assert str(caught.value).startswith(said)


def _without_checksum(line: str) -> str:
    return json.dumps({name: value for name, value in json.loads(line).items() if name != "checksum"}) + "\n"


def test_a_checksum_that_was_taken_away_is_missed(written: Path):
    lines = written.read_text().splitlines(keepends=True)
    for index in range(1, len(lines)):
        written.write_text("".join([*lines[:index], _without_checksum(lines[index]), *lines[index + 1 :]]))
        with pytest.raises(RecordError, match=f"line {index + 1} was edited"):
            RecordFile(written)


def test_older_files_without_checksums_are_read_and_said_to_be_unchecked(written: Path):
    with_checksums = RecordFile.read(written)
    assert with_checksums.notes == ()
    lines = written.read_text().splitlines()
    written.write_text("".join(map(_without_checksum, lines[:3])))
    file = RecordFile(written)
    for record in (point(1 / 3), CURVE):
        file.append(record)
    found = RecordFile.read(written)
    assert found.unchecked == 3
    assert found.notes == (
        "An older isobasin wrote 3 lines of records.jsonl, without a checksum: nothing tells if they were edited.",
    )
    assert (found.run, found.points, found.curves) == (run(), with_checksums.points, with_checksums.curves)
    edited = written.read_text().splitlines(keepends=True)
    written.write_text("".join([*edited[:3], edited[3].replace("1.25", "0.25"), edited[4]]))
    with pytest.raises(RecordError, match="line 4 was edited"):
        RecordFile.read(written)


def test_what_is_no_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "records.jsonl")
    for use in (RecordFile, RecordFile.read):
        with pytest.raises(RecordError, match="isn't a file"):
            use(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "records.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(RecordError, match="line 1 isn't a record"):
        RecordFile.read(tmp_path / "deep")


def test_a_torn_first_line_is_no_run(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind":"run","schema_ver')
    assert RecordFile(path).measured is None
    with pytest.raises(RecordError, match="no run is recorded here"):
        RecordFile.read(path)
    RecordFile(path).append(run())
    assert RecordFile.read(path) == Measured(run())


def test_the_later_of_two_equal_points_counts(written: Path):
    RecordFile(written).append(point(1 / 3, loss=9.0))
    found = RecordFile.read(written).points[(0, 1), "none"]
    assert [(one.t, one.loss) for one in found] == [(1 / 3, 9.0), (1.0, 1.25)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_none(bad: float, tmp_path: Path):
    file = RecordFile(tmp_path)
    lost = point(0.0, loss=bad, group_losses=(1.0, bad), metrics={"perplexity": bad}, calibrated_loss=bad)
    broken = layer(condition=bad, distance_after=bad, head_costs=((bad, 1.0), (1.0, 2.0)))
    for record in (run(), lost, AlignmentRecord(pair=(0, 1), method="paper", seconds=1.0, layers=(broken,))):
        file.append(record)
    text = file.path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = RecordFile.read(tmp_path)
    assert found.points[(0, 1), "none"] == [lost]
    assert (lost.loss, lost.group_losses, lost.metrics) == (None, (1.0, None), {"perplexity": None})
    kept = found.alignments[(0, 1), "paper"].layers[0]
    assert (kept.condition, kept.distance_after, kept.head_costs[0]) == (None, None, (None, 1.0))


def test_another_schema_version_is_refused_whatever_its_fields_are(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind":"run","schema_version":2,"news":[]}\n')
    for use in (RecordFile, RecordFile.read):
        with pytest.raises(RecordError, match=r"^[^\n]*has schema version 2, and this isobasin reads 1[^\n]*$"):
            use(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("garbage", "line 2 isn't a record"),
        ("", "line 2 isn't a record"),
        ('{"kind":"poem"}', "line 2 isn't a record"),
        (json.dumps({**point(0.0).model_dump(), "extra": 1}), "line 2 isn't a record .*extra"),
        (json.dumps({**point(0.0).model_dump(), "t": "x"}), "line 2 isn't a record .*t: "),
        (run().model_dump_json(), "line 2 begins a second run"),
        (point(0.0, pair=(0, 2)).model_dump_json(), "line 2 has the pair .*0, 2.* of 2 models"),
        (point(0.0, pair=(-1, 1)).model_dump_json(), "line 2 has the pair"),
        (point(0.0, method="heads").model_dump_json(), "line 2 has the method 'heads'"),
        (point(0.5).model_dump_json(), "line 2 has t = 0.5"),
        (point(0.0, group_losses=(1.0,)).model_dump_json(), "line 2 has 1 groups of examples instead of 2"),
    ],
)
def test_a_line_that_is_not_one_of_this_run_is_refused(line: str, said: str, tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{run().model_dump_json()}\n{line}\n{point(1.0).model_dump_json()}\n")
    before = path.read_bytes()
    with pytest.raises(RecordError, match=said) as caught:
        RecordFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_the_first_line_has_to_be_the_run(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match="first line"):
        RecordFile(path).append(point(0.0))
    RecordFile(path).append(run())
    with pytest.raises(ValueError, match="one run"):
        RecordFile(path).append(run())
    assert RecordFile.read(path) == Measured(run())
    path.write_text(point(0.0).model_dump_json() + "\n")
    with pytest.raises(RecordError, match="line 1 is of kind 'point'"):
        RecordFile.read(path)


def test_what_is_not_there_or_cannot_be_written_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(RecordError, match="can't be read"):
        RecordFile.read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        RecordFile(tmp_path / "file" / "records.jsonl")
