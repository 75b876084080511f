import builtins
import csv
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import measurements
import pytest

from isobasin.errors import DependencyError, OutputError, RecordError
from isobasin.records.file import RecordFile
from isobasin.reports.figures import Panel, Row, barrier_rows, calibrated_rows, draw, folded
from isobasin.reports.style import alike, brief, labels, number, percent, styles
from isobasin.reports.tables import write_curves, write_points
from isobasin.reports.view import view
from isobasin.reports.write import write_report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

FILES = [
    "points.csv",
    "curves.csv",
    "barriers.png",
    "barriers.svg",
    "calibrated.png",
    "calibrated.svg",
    "report.html",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished measurement of one pair, and all that is shown of it."""
    folder = tmp_path_factory.mktemp("whole")
    measurements.write(folder, measurements.run(("a", "b"), points=5))
    assert [path.name for path in write_report(folder)] == FILES
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there_and_nothing_else(whole: Path):
    assert sorted(path.name for path in whole.iterdir()) == sorted([*FILES, "records.jsonl"])
    assert (whole / "barriers.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "barriers.svg").read_text().startswith("<?xml")


HOSTILE = ("=HYPERLINK(1)", "-2+3\x1b[31m", "@a\n$\\frac")


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path: Path):
    shown = view(measurements.write(tmp_path, measurements.run(HOSTILE, ("none", "+heads"), points=3)))
    write_points(shown, tmp_path / "points.csv")
    write_curves(shown, tmp_path / "curves.csv")
    for name in ("points.csv", "curves.csv"):
        found = rows(tmp_path / name)
        assert {row["a"] for row in found} == {"'=HYPERLINK(1)", r"'-2+3\x1b[31m"}
        assert {row["b"] for row in found} == {r"'-2+3\x1b[31m", r"'@a\n$\frac"}
        assert {row["method"] for row in found} == {"none", "'+heads"}
    assert all(float(row["loss"]) > 0 for row in rows(tmp_path / "points.csv"))


def test_figures_show_names_as_text(tmp_path: Path):
    shown = view(measurements.write(tmp_path, measurements.run(HOSTILE[1:], ("none",), points=3)))
    draw(barrier_rows(shown), shown.styles, HOSTILE[2], [tmp_path / "barriers.svg"])
    drawn = ElementTree.parse(tmp_path / "barriers.svg")
    assert r"-2+3\x1b[31m to @a\n$\frac" in {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}


def test_tables_have_every_number_at_full_precision(whole: Path):
    measured = RecordFile.read(whole)
    found = rows(whole / "points.csv")
    expected = [point for method in measured.run.methods for point in measured.points[(0, 1), method]]
    assert [(row["a"], row["b"], row["method"]) for row in found] == [("a", "b", one.method) for one in expected]
    for name in ("t", "loss", "calibrated_loss", "temperature", "seconds", "interpolation_seconds"):
        assert [float(row[name]) for row in found] == [getattr(one, name) for one in expected]
    assert [float(row["accuracy"]) for row in found] == [one.metrics["accuracy"] for one in expected]
    curves = rows(whole / "curves.csv")
    assert [row["method"] for row in curves] == list(measured.run.methods)
    for row in curves:
        curve = measured.curves[(0, 1), row["method"]]
        for name in (
            "barrier",
            "barrier_error",
            "relative",
            "worst_t",
            "share_of_ends",
            "calibrated_barrier",
            "overhead",
        ):
            assert float(row[name]) == getattr(curve, name)
    layers = measured.alignments[(0, 1), "paper"].layers
    paper = next(row for row in curves if row["method"] == "paper")
    for when in ("before", "after"):
        total = math.sqrt(sum(getattr(layer, f"distance_{when}") ** 2 for layer in layers))
        assert float(paper[f"distance_{when}"]) == pytest.approx(total, rel=1e-12)
    assert curves[0]["distance_before"] == ""


def test_an_interrupted_measurement_is_shown_as_far_as_it_came(tmp_path: Path):
    measurements.write(tmp_path, measurements.run(("a", "b", "c"), points=5), points=5 + 5 + 3)
    write_report(tmp_path)
    assert [(row["method"], row["b"]) for row in rows(tmp_path / "curves.csv")] == [("none", "b"), ("heads", "b")]
    assert len(rows(tmp_path / "points.csv")) == 13
    text = (tmp_path / "barriers.svg").read_text()
    assert "unfinished: 13 of 60 points" in text
    first, second, third = (
        " ".join(panel.note.split()) for panel in barrier_rows(view(RecordFile.read(tmp_path)))[0].panels
    )
    assert first.endswith("; unfinished: published, Gauss-Newton")
    assert first.startswith("barrier: naive ")
    assert second == third == "not begun"


def test_a_measurement_that_has_just_begun_is_shown_too(tmp_path: Path):
    RecordFile(tmp_path).append(measurements.run())
    names = [path.name for path in write_report(tmp_path)]
    assert names == [name for name in FILES if not name.startswith("calibrated")]
    assert "0 of 300 points" in (tmp_path / "report.html").read_text()


def test_losses_that_are_not_numbers_leave_gaps(tmp_path: Path):
    run = measurements.run(("a", "b"), ("none",), points=5)
    file = RecordFile(tmp_path)
    file.append(run)
    for t in run.t:
        changes = {"loss": None, "metrics": {"accuracy": None}} if t == 0.5 else {}
        file.append(measurements.point(run, (0, 1), "none", t).model_copy(update=changes))
    shown = view(RecordFile.read(tmp_path))
    panel = barrier_rows(shown)[0].panels[0]
    assert [math.isnan(value) for value in panel.lines["none"][1]] == [False, False, True, False, False]
    assert panel.note.replace("\u00a0", " ") == "barrier: naive not finite"
    write_report(tmp_path)
    assert rows(tmp_path / "points.csv")[2]["loss"] == ""
    assert rows(tmp_path / "curves.csv")[0]["barrier"] == ""


def test_figures_show_the_points_of_every_line(whole: Path):
    measured = RecordFile.read(whole)
    shown = view(measured)
    loss, accuracy = barrier_rows(shown)
    calibrated, temperature = calibrated_rows(shown)
    assert (loss.percent, accuracy.percent) == (False, True)
    for method, points in measured.points.items():
        t = list(measured.run.t)
        assert loss.panels[0].lines[method[1]] == (t, [point.loss for point in points])
        assert accuracy.panels[0].lines[method[1]] == (t, [point.metrics["accuracy"] for point in points])
        assert calibrated.panels[0].lines[method[1]] == (t, [point.calibrated_loss for point in points])
        assert calibrated.panels[0].faint == loss.panels[0].lines
        assert loss.panels[0].errors[method[1]] == list(measured.curves[method].loss_errors)
        assert accuracy.panels[0].errors == calibrated.panels[0].errors == {}
        assert temperature.panels[0].lines[method[1]] == (t, [point.temperature for point in points])
    for curve in measured.curves.values():
        assert number(curve.barrier) in loss.panels[0].note
    text = (whole / "barriers.svg").read_text()
    for style in shown.styles.values():
        assert style.name in text
        assert style.color.lower() in text


def test_many_pairs_are_broken_into_rows_of_panels(tmp_path: Path):
    measurements.write(tmp_path, measurements.run("abcd", ("none",), points=3, task="causal-lm"))
    found = barrier_rows(view(RecordFile.read(tmp_path)))
    assert [(row.label, len(row.panels), row.log) for row in found] == [
        ("loss (cross-entropy)", 4, False),
        ("perplexity", 4, True),
        ("bits per character", 4, False),
        ("loss (cross-entropy)", 2, False),
        ("perplexity", 2, True),
        ("bits per character", 2, False),
    ]
    draw(found, styles(["none"]), "title", [tmp_path / "figure.png"])
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_same_records_give_the_same_figure(tmp_path: Path):
    panel = Panel({"none": ([0, 1], [1.0, 2.0])}, title="t")
    for name in ("one.svg", "two.svg"):
        draw([Row("loss", [panel])], styles(["none"]), "title", [tmp_path / name])
    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()


def test_a_line_has_the_band_of_its_standard_errors(tmp_path: Path):
    figure = tmp_path / "figure.svg"

    def bands(errors: dict[str, list[float | None]]) -> list[set[str]]:
        panel = Panel({"none": ([0, 0.5, 1], [1.0, 2.0, 1.0])}, errors)
        draw([Row("loss", [panel])], styles(["none"]), "title", [figure])
        filled = [g for g in ElementTree.parse(figure).iter() if g.get("id", "").endswith("PolyCollection_1")]
        return [set(path.get("d", "").split()) for g in filled for path in g.iterfind(".//{*}path")]

    assert bands({}) == []
    (whole,) = bands({"none": [0.25, 0.5, 0.25]})
    assert len(whole) > 6
    assert bands({"none": [0.25, 0.5, None]}) != [whole]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((5.6, 48.0, 6.1), ["5", "7", "10", "15", "20", "30", "50"]),
        ((0.002, 0.9, 0.004), ["0.001", "0.01", "0.1", "1"]),
        ((2.0, 90.0, 2.0), ["1", "2", "5", "10", "20", "50", "100"]),
    ],
)
def test_ticks_of_logarithmic_axes_are_plain_numbers(
    values: tuple[float, float, float], ticks: list[str], tmp_path: Path
):
    figure = tmp_path / "figure.svg"
    panel = Panel({"none": ([0, 0.5, 1], values)})
    draw([Row("perplexity", [panel], log=True)], styles(["none"]), "title", [figure])
    (axis,) = ElementTree.parse(figure).iterfind(".//{*}g[@id='matplotlib.axis_2']")
    shown = [text.text for text in axis.iter("{http://www.w3.org/2000/svg}text") if text.text != "perplexity"]
    assert len(shown) >= 3
    assert set(shown) <= set(ticks)


def test_names_are_text_and_no_formulas(tmp_path: Path):
    names = ("$\\bad{$", "_hidden $x$")
    measurements.write(tmp_path, measurements.run(names, ("none", "$\\frac$"), points=3))
    write_report(tmp_path)
    text = (tmp_path / "barriers.svg").read_text()
    assert "$\\bad{$ to _hidden $x$" in text
    assert "$\\frac$" in text


def test_a_folder_without_records_and_one_that_cannot_be_written_are_refused(tmp_path: Path):
    with pytest.raises(RecordError, match="can't be read"):
        write_report(tmp_path)
    measurements.write(tmp_path, measurements.run(("a", "b"), ("none",), points=3))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_report(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measurements.write(tmp_path, measurements.run(("a", "b"), ("none",), points=3))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"pip install \"isobasin\[barrier\]\""):
        write_report(tmp_path)


def test_methods_are_named_and_ordered_alike_everywhere():
    found = styles(["gauss-newton", "spectral", "none", "paper", "cosine", "heads", "orthogonal"])
    assert {method: style.name for method, style in found.items()} == {
        "none": "naive",
        "heads": "heads only",
        "orthogonal": "orthogonal only",
        "paper": "published (start + gradient descent)",
        "gauss-newton": "Gauss-Newton",
        "spectral": "spectral",
        "cosine": "cosine",
    }
    assert list(found)[:5] == ["none", "heads", "orthogonal", "paper", "gauss-newton"]
    assert len({style.color for style in found.values()}) == len(found)
    assert len({style.dash for style in found.values()}) == len(found)


def test_lines_to_what_was_moved_before_are_named_by_what_moved_it():
    given = {"refined": "refine", "model": "gauss-newton", "mine": "scramble"}
    found = styles(["none", "gauss-newton", *given], given=given)
    assert [style.name for style in found.values()] == [
        "naive",
        "Gauss-Newton",
        "refined",
        "Gauss-Newton: model",
        "scramble: mine",
    ]
    assert [style.short for style in found.values()][2:] == list(given)
    assert len({style.color for style in found.values()}) == len(found)


def test_models_are_named_by_what_tells_them_apart():
    assert labels(["runs/x/one/", "org/two"]) == ["one", "two"]
    assert labels(["one/model", "two/model"]) == ["one/model", "two/model"]
    assert labels(["model", "model"]) == ["model (1)", "model (2)"]
    assert labels(["/", "a"]) == ["/", "a"]


def test_numbers():
    values = [None, 0.0, 1.23456, 12.3456, 123.456, 0.00123456, 0.0000123456, -0.5, 1234567.0]
    assert [number(value) for value in values] == [
        "–",
        "0",
        "1.235",
        "12.346",
        "123",
        "0.0012",
        "1.2e-05",
        "-0.500",
        "1.2e+06",
    ]
    assert [percent(value) for value in (None, 0.0, 0.0561, 12.571)] == ["–", "0.0 %", "5.6 %", "1257 %"]
    assert [alike(0.0381, value) for value in (1.5, 150.0, 0.0012, None)] == ["0.038", "0.038", "0.0381", "0.038"]
    assert [brief(value) for value in (1.446, 0.1224, 0.0, 14.6, 0.00001)] == ["1.4", "0.12", "0", "15", "1.0e-05"]


def test_no_item_of_a_note_is_broken():
    items = ["naive 1.7", "heads 1.7", "Gauss-Newton 0.24"]
    shown = folded({"barrier": items}).replace("\u00a0", " ").splitlines()
    assert len(shown) > 1
    assert all(any(item in line for line in shown) for item in items)
