"""Tables and figures of an experiment, against numbers that are known."""

from __future__ import annotations

import csv
import html
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experiment_records
import pandas as pd
import pytest
from experiment_records import NAIVE, OURS

from isobasin.errors import ConfigurationError
from isobasin.experiments.cells import RECORD, Cell
from isobasin.reports import experiment_figures
from isobasin.reports.experiment import write_experiment_report
from isobasin.reports.figures import Panel
from isobasin.reports.frames import Table, spread

pytest.importorskip("matplotlib")

FILES = [
    "report.html",
    "report.md",
    *(
        f"{name}.csv"
        for name in (
            "ends",
            "barriers",
            "findings",
            "stage-1",
            "stage-2",
            "head-costs",
            "alignments",
            "reinitialise",
            "symmetry-breaking",
        )
    ),
    *(
        f"{name}.{suffix}"
        for name in (
            "curves-vit-on-digits",
            "permutations-vit-on-digits",
            "curves-rotary-on-digits",
            "permutations-rotary-on-digits",
            "reinitialise",
            "ways",
        )
        for suffix in ("png", "svg")
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    experiment_records.write(folder)
    written = write_experiment_report(folder)
    assert [path.name for path in written] == FILES
    return folder / "report"


def rows(report: Path, name: str) -> list[dict[str, str]]:
    with (report / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def texts(figure: Path) -> str:
    """An SVG in which all spaces are plain ones."""
    return figure.read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_all_files_are_there(report: Path):
    assert sorted(path.name for path in report.iterdir()) == sorted(FILES)
    page = (report / "report.md").read_text()
    assert page.startswith("# a study\n\nAll 55 cells are done.\n")
    for name in FILES:
        assert (f"({name})" in page) == name.endswith((".png", ".html"))
        assert (report / name).stat().st_size > 0


def test_the_page_has_all_tables_and_every_line(report: Path):
    page = (report / "report.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", " ", page.split("<script", 1)[0]))
    for words in (
        "All 55 cells are done.",
        "Is there linear mode connectivity?",
        "0.187 ± 0.272",
        "2 of 3, refined (no)",
    ):
        assert words in text
    assert page.count('src="data:image/svg+xml;base64,') == 4
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [method["name"] for method in data["methods"]] == ["naive", "Gauss-Newton", "attention", "refined"]
    assert [[line["barrier"] for line in pair["lines"]] for pair in data["pairs"][:2]] == [
        ["1.000", "0.020", "0.020", "0.010"],
        ["2.000", "0.500", "0.500", "0.250"],
    ]
    assert len(data["pairs"]) == 12
    assert data["pairs"][1]["lines"][1]["values"] == {"loss": [1.0, 1.5, 1.0], "accuracy": [0.9, 0.5, 0.9]}


def test_the_page_shows_what_came_from_outside_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evil = "</script><img src=x onerror=alert(1)>"
    monkeypatch.setattr(experiment_records, "SETTINGS", experiment_records.SETTINGS.model_copy(update={"title": evil}))
    experiment_records.write(tmp_path / "out", without=("pair", "alignments"))
    write_experiment_report(tmp_path / "out")
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "<img src=x" not in page
    assert html.escape(evil) in page


def test_barriers(report: Path):
    found = rows(report, "barriers")
    assert [(row["setting"], row["scope"], row["method"]) for row in found] == [
        (setting, scope, method)
        for setting in ("vit on digits", "rotary on digits")
        for scope in ("first-attention", "entire-model")
        for method in ("naive", "Gauss-Newton")
    ]
    naive, ours = found[0], found[1]
    assert float(naive["barrier"]) == pytest.approx(statistics.fmean(NAIVE))
    assert float(ours["barrier"]) == pytest.approx(statistics.fmean(OURS))
    assert float(ours["barrier sd"]) == pytest.approx(statistics.stdev(OURS))
    shares = [100 * a / b for a, b in zip(OURS, NAIVE, strict=True)]
    assert float(ours["% of naive"]) == pytest.approx(statistics.fmean(shares))
    assert float(ours["% of naive sd"]) == pytest.approx(statistics.stdev(shares))
    assert float(ours["% of the ends' loss"]) == pytest.approx(100 * statistics.fmean(OURS))
    # Of 0.02, 0.5 and 0.04 two are at most 5 % of the ends' loss, which is 1.
    assert (naive["connected"], ours["connected"]) == ("no", "2 of 3")


def test_ends_and_findings(report: Path):
    first = rows(report, "ends")[0]
    assert (first["models"], first["pretrained loss"]) == ("3", "0.5")
    assert (float(first["loss"]), float(first["accuracy, %"])) == (1.0, pytest.approx(90))
    assert rows(report, "findings") == [
        {"setting": setting, "first-attention": first, "entire-model": entire}
        for setting, first, entire in (
            ("vit on digits", "2 of 3, refined (no)", "2 of 3, Gauss-Newton (no)"),
            ("rotary on digits", "2 of 3, refined (no)", "2 of 3, Gauss-Newton (no)"),
            ("paper: small data", "yes", "yes"),
            ("paper: large data", "yes", "no"),
        )
    ]


def test_ablations(report: Path):
    first = rows(report, "stage-1")[0]
    assert first == {
        "setting": "vit on digits",
        "scope": "first-attention",
        "seeds": "1 and 2",
        "rank": "2",
        "of": "2",
        "L̂": "25.0",
        "naive barrier": "1.0",
    }
    second = {row["stage 2"]: row for row in rows(report, "stage-2")[:5]}
    assert float(second["heads only"]["% of naive"]) == pytest.approx(81)
    assert float(second["heads only"]["% of naive sd"]) == pytest.approx(1)
    assert [row["paper, %"] for row in second.values()] == ["", "62–91", "10–16", "7–12", ""]
    costs = rows(report, "head-costs")[:3]
    assert [(row["head cost"], row["heads of the best"]) for row in costs] == [
        ("naive", ""),
        ("rotary", "3 of 3"),
        ("cosine", "0 of 3"),
    ]
    ways = {row["model B is moved by"]: row for row in rows(report, "alignments")[:4]}
    assert list(ways) == ["naive", "attention", "refined", "mean circuits after the match"]
    assert [row["seconds"] for row in ways.values()] == ["", "2.0", "60.0", ""]
    assert float(ways["refined"]["barrier"]) == pytest.approx((0.02 + 0.5 + 0.04) / 6)
    assert [ways["mean circuits after the match"][name] for name in ("barrier", "at the middle")] == ["", "0.25"]
    layers = rows(report, "reinitialise")[:3]
    assert [(row["layer"], float(row["loss"])) for row in layers] == [("none", 0.5), ("0", 1.5), ("1", 2.5)]
    right, wrong = rows(report, "symmetry-breaking")
    assert (right["setting"], right["group"], wrong["group"]) == ("rotary on digits", "H", "GL")
    assert [float(row["loss added"]) for row in (right, wrong)] == [0, 0.75]
    assert [float(row["n = 4"]) for row in (right, wrong)] == [0, 0.75]
    assert [float(row["n = 0"]) for row in (right, wrong)] == [0, 0]


def test_figures_name_what_they_show(report: Path):
    curves = texts(report / "curves-vit-on-digits.svg")
    for text in (
        "seeds 1 and 2",
        "seeds 2 and 3",
        "first-attention",
        "entire-model",
        "naive",
        "Gauss-Newton",
        "Gauss-Newton 0.5",
    ):
        assert text in curves
    permutations = (report / "permutations-vit-on-digits.svg").read_text()
    for text in ("rank 2 of 2", "the chosen one", "naive"):
        assert text in permutations
    assert "pretrained" in (report / "reinitialise.svg").read_text()


def test_an_unfinished_experiment_is_shown_as_far_as_it_came(tmp_path: Path):
    done = ("pair", "pretrain", "finetune")
    without = ("stage-1", "stage-2", "head-costs", "alignments", "reinitialise", "symmetry-breaking")
    experiment = experiment_records.write(tmp_path / "out", without=without)
    names = [path.name for path in write_experiment_report(tmp_path / "out")]
    assert names[:5] == ["report.html", "report.md", "ends.csv", "barriers.csv", "findings.csv"]
    assert not any(name.startswith(("permutations", "reinitialise", "stage")) for name in names)
    # The models of the ablations are missing too.
    assert len(experiment.left(experiment.cells())) == 37
    assert "37 of 55 cells are still to do." in (tmp_path / "out" / "report" / "report.md").read_text()
    experiment_records.write(tmp_path / "none", without=(*without, *done))
    assert [path.name for path in write_experiment_report(tmp_path / "none")] == ["report.html", "report.md"]


@pytest.fixture(scope="module")
def odd_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of records with a barrier that is not finite, and with two that are equal."""
    folder = tmp_path_factory.mktemp("odd") / "out"
    experiment = experiment_records.write(folder)
    group = experiment.plans[0].groups[0]

    def edit(cell: Cell, change: Callable[[dict[str, Any]], None]) -> None:
        path = experiment.store.path(cell) / RECORD
        record = json.loads(path.read_text())
        change(record["result"])
        path.write_text(json.dumps(record))

    edit(group.pairs[1, 2], lambda result: result["lines"].update({"gauss-newton": experiment_records.line(None, 1.0)}))
    edit(
        group.ablations["stage-1"][1, 2],
        lambda result: result["permutations"][1].update(barrier=result["permutations"][0]["barrier"]),
    )
    write_experiment_report(folder)
    return folder / "report"


def test_a_barrier_that_is_not_finite_is_no_connection(odd_report: Path):
    ours = rows(odd_report, "barriers")[1]
    assert ours["connected"] == "1 of 3"
    assert float(ours["barrier"]) == pytest.approx(statistics.fmean(OURS[1:]))
    assert "Gauss-Newton not finite" in texts(odd_report / "curves-vit-on-digits.svg")


def test_a_folder_without_experiment(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"has no experiment\.json"):
        write_experiment_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_equal_barriers_share_a_rank(odd_report: Path):
    """Earlier records numbered them as they came."""
    assert [row["rank"] for row in rows(odd_report, "stage-1")[:2]] == ["1", "2"]
    assert "rank 1 of 2" in texts(odd_report / "permutations-vit-on-digits.svg")


def test_tables_in_both_forms():
    rows = [("x|y", 1.0), ("z", None), ("x|y", 2.0), ("w", 3.0)]
    table = Table("t", "A title", "A note.", ("a", "pairs", "b"), spread(rows, ("a",), ("b",)))
    assert table.markdown() == (
        "## A title\n\nA note.\n\n"
        "| a    | pairs | b             |\n"
        "|------|-------|---------------|\n"
        "| x\\|y | 2     | 1.500 ± 0.707 |\n"
        "| z    | 1     | –             |\n"
        "| w    | 1     | 3.000         |"
    )
    assert table.csv() == "a,pairs,b,b sd\nx|y,2,1.5,0.7071067811865476\nz,1,,\nw,1,3.0,\n"
    rows = [("x", 1.0, 200, "p"), ("x", 2.0, 200, "q"), ("y", None, 0.5, None)]
    frame = spread(rows, ("a",), ("%", "b"), all="first")
    shares = Table("t", "T", "", ("%", "b", "all"), frame)
    assert shares.markdown().splitlines()[-2:] == ["| 1.5 ± 0.7 | 200 ± 0 | p   |", "| –         | 0.500   | –   |"]


def test_titles_are_text_and_nothing_else():
    frame = pd.DataFrame({"a|b": ["<img src=x>", "=1+1", "![x](y)\n\x1b"]})
    table = Table("t", "A title", "", ("a|b",), frame)
    cells = [line.strip("| ") for line in table.markdown().splitlines()[2:]]
    assert cells[:1] + cells[2:] == [r"a\|b", "&lt;img src=x&gt;", "=1+1", r"!\[x\](y)\\n\\x1b"]
    assert table.csv().splitlines() == ["a|b", "<img src=x>", "'=1+1", r"![x](y)\n\x1b"]


def test_many_pairs_take_several_rows():
    panels = [Panel({"none": ([0.0, 1.0], [1.0, 1.0])}, title=str(index)) for index in range(6)]
    rows = experiment_figures._wrapped("loss", panels)
    assert [[panel.title for panel in row.panels] for row in rows] == [["0", "1", "2", "3"], ["4", "5"]]
