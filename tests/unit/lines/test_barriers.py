"""Barriers from Python: what is measured is what the records say, and it can be looked at."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from measured_models import Models

import isobasin
from isobasin.errors import IsobasinError
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.lines.path import LossCurve
from isobasin.records.file import RecordFile

HOW = Measuring(methods=("none", "gauss-newton"), points=5, batch_size=25, temperature=False)


@pytest.fixture(scope="module")
def found(models: Models, tmp_path_factory: pytest.TempPathFactory) -> isobasin.Barriers:
    output = tmp_path_factory.mktemp("barriers") / "out"
    return isobasin.barrier([models.a, models.b], str(models.data), output, how=HOW)


def test_lines_are_those_that_are_recorded(found: isobasin.Barriers, models: Models, tmp_path: Path):
    assert found.path is not None
    assert (found.path / "report.html").is_file()
    recorded = RecordFile.read(found.path)
    options = isobasin.DataOptions(str(models.data), split="test")
    again = measure([models.a, models.b], options, tmp_path, HOW)
    assert again.run.settings == recorded.run.settings
    for line in found.lines:
        key = (0, 1), line.method
        for points, curve in ((recorded.points[key], recorded.curves[key]), (again.points[key], again.curves[key])):
            assert [point.loss for point in points] == list(line.curve.losses)
            assert (curve.barrier, curve.worst_t) == (line.curve.height, line.curve.worst_t)
    naive, aligned = (found.curve(method) for method in HOW.methods)
    assert aligned.height < 1e-4 < naive.height
    with pytest.raises(IsobasinError, match="no such line was measured: there is none from a to b"):
        found.curve("paper")


def test_without_a_folder_nothing_is_written(found: isobasin.Barriers, models: Models, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = isobasin.DataOptions(str(models.data), max_examples=5)
    made = isobasin.barrier([models.a, models.c], data, how=Measuring(("none",), points=3, temperature=False))
    assert (made.path, len(made.lines), list(tmp_path.iterdir())) == (None, 1, [])


def test_curves_are_drawn_as_they_are(found: isobasin.Barriers):
    axes = Figure().subplots()
    assert found.plot(axes) is axes
    drawn = [line for line in axes.get_lines() if line.get_linestyle() != ":"]
    for line, shown in zip(found.lines, drawn, strict=True):
        assert tuple(shown.get_xdata()) == line.curve.t
        assert tuple(shown.get_ydata()) == line.curve.losses
        assert len(line.curve.errors) == len(line.curve.t)
    assert len(axes.collections) == len(found.lines)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "gauss-newton"]


def test_a_curve_draws_itself_on_axes_of_its_own():
    from matplotlib import pyplot

    curve = LossCurve((0.0, 0.5, 1.0), (1.0, 3.0, 2.0), 1.5, 0.5)
    axes = curve.plot(color="red", label="naive")
    (line, ends) = axes.get_lines()
    assert (line.get_color(), line.get_label(), list(ends.get_ydata())) == ("red", "naive", [1.0, 2.0])
    assert not axes.collections
    pyplot.close(axes.figure)
    axes = replace(curve, errors=(0.5, 0.25, None)).plot(color="red")
    (band,) = axes.collections
    assert {tuple(corner) for path in band.get_paths() for corner in path.vertices} == {
        *((0.0, 0.5), (0.0, 1.5), (0.5, 2.75), (0.5, 3.25))
    }
    pyplot.close(axes.figure)
    assert repr(curve) == "LossCurve(t=[0, 0.5, 1], losses=[1, 3, 2], height=1.5, worst_t=0.5)"


def test_a_notebook_shows_a_picture_and_a_table(found: isobasin.Barriers, monkeypatch: pytest.MonkeyPatch):
    shown = found._repr_html_()
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert shown.count("<tr>") == 3 + len(found.lines)
    assert len(repr(found)) < 300
    # Without matplotlib the table is left.
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "<img" not in found._repr_html_()
