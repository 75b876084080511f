"""The page of an experiment, whose records are made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experiment_records
import pytest

from isobasin.experiments.cells import RECORD
from isobasin.reports.experiment import write_experiment_report

pytest.importorskip("jinja2")
pytestmark = pytest.mark.long

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    experiment = experiment_records.write(folder)
    # One setting has a metric that the other hasn't.
    for cell in experiment.plans[1].groups[0].pairs.values():
        path = experiment.store.path(cell) / RECORD
        record = json.loads(path.read_text())
        for line in record["result"]["lines"].values():
            line["metrics"] = {"perplexity": [2.0, 9.0, 2.0]}
        path.write_text(json.dumps(record))
    write_experiment_report(folder)
    return folder / "report" / "report.html"


def shown(page: Any, selector: str) -> list[str]:
    return [one.inner_text() for one in page.locator(selector).all() if one.is_visible()]


def test_every_pair_can_be_looked_at(report: Path, visit: Open):
    page = visit(report)
    assert page.title() == "a study"
    options = page.locator("#pair option").all_inner_texts()
    assert len(options) == 12
    assert options[1] == "vit on digits, first-attention, seed 1 and seed 3"
    assert shown(page, "button.key .name") == ["naive", "Gauss-Newton", "attention", "refined"]
    assert shown(page, "button.key .value") == ["1.000", "0.020", "0.020", "0.010"]
    assert page.locator("#curves .curve .line").count() == 4
    page.get_by_label("Pair", exact=True).select_option(label=options[2])
    assert shown(page, "button.key .value") == ["4.000", "0.040", "0.040", "0.020"]


def test_quantities_are_those_of_the_pair(report: Path, visit: Open):
    page = visit(report)
    assert shown(page, "[data-quantity]") == ["loss", "accuracy"]
    page.get_by_role("button", name="accuracy").click()
    # Ways that were measured without it have no curve there.
    drawn = [path.get_attribute("d") for path in page.locator("#curves .curve .line").all()]
    assert [bool(path) for path in drawn] == [True, True, False, False]
    page.get_by_label("Pair", exact=True).select_option(label="rotary on digits, first-attention, seed 1 and seed 2")
    assert shown(page, "[data-quantity]") == ["loss", "perplexity"]
    assert page.get_by_role("button", name="loss", exact=True).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("width", [320, 420, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(report: Path, visit: Open, width: int, scheme: str):
    page = visit(report, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(size > 0 for size in page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)"))
    table = page.locator("#barriers table")
    page.locator("#barriers .scroll").evaluate("one => (one.scrollLeft = 200)")
    first = table.locator("tbody th[scope=row]").first.bounding_box()
    assert first["x"] >= 0


def test_tables_need_no_script(report: Path, visit: Open):
    page = visit(report, java_script_enabled=False)
    assert page.get_by_role("heading", name="Barriers").is_visible()
    assert page.locator("img").count() == 4
    assert not page.locator("#curves").is_visible()
