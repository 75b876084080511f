import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measurements
import pytest

from isobasin.records.file import RecordFile
from isobasin.records.schema import RunRecord
from isobasin.reports.page import write_page
from isobasin.reports.style import number
from isobasin.reports.view import view

pytest.importorskip("jinja2")
pytestmark = pytest.mark.long

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished measurement of three models."""
    folder = tmp_path_factory.mktemp("report")
    measurements.write(folder, measurements.run(), layers=3, heads=4)
    return page_of(folder)


def page_of(folder: Path) -> Path:
    path = folder / "report.html"
    write_page(view(RecordFile.read(folder)), path)
    return path


def ticks(page: Any, chart: str = "#curves") -> list[str]:
    """The labels of the vertical axis."""
    return [text for text in page.locator(f"{chart} svg text[text-anchor=end]").all_text_contents() if "B:" not in text]


def legend(page: Any) -> dict[str, str]:
    keys = page.locator("button.key")
    return dict(zip(keys.locator(".name").all_inner_texts(), keys.locator(".value").all_inner_texts(), strict=True))


def cells(page: Any, chart: str = "#costs") -> list[str]:
    return page.locator(f"{chart} rect.cell").evaluate_all("all => all.map(one => getComputedStyle(one).fill)")


def luminance(page: Any, selector: str, name: str) -> float:
    """Relative luminance of a colour as WCAG 2 defines it."""
    css = page.locator(selector).first.evaluate(f"one => getComputedStyle(one)['{name}']")
    channels = [int(value) / 255 for value in re.findall(r"\d+", css)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Any, selector: str, name: str) -> float:
    dark, light = sorted([luminance(page, selector, name), luminance(page, "body", "backgroundColor")])
    return (light + 0.05) / (dark + 0.05)


def test_the_page_shows_every_part(report: Path, visit: Open):
    page = visit(report)
    measured = RecordFile.read(report.parent)
    assert page.title() == "3 models on digits"
    assert page.locator("h2").all_inner_texts()[0] == "Barriers"
    assert page.locator("#curves .curve .line").count() == len(measured.run.methods)
    for path in page.locator("#curves .curve .line").all():
        assert path.get_attribute("d").count("L") == len(measured.run.t) - 1
    assert page.locator("#curves .chord").count() == 1
    for path in page.locator("#curves .curve .band").all():
        assert path.get_attribute("d").count("Z") == len(measured.run.t) - 1
    assert len(cells(page)) == len(cells(page, "#permutation")) == 16
    assert page.locator("#distances .bar").count() == 3 * (1 + 3)
    assert page.locator("#conditions .spot").count() == 3 * 3
    assert page.locator("#unit-distances .bar").count() == 3 * 2
    assert page.locator("#unit-moves .bar").count() == 3
    assert list(legend(page).values()) == [
        number(measured.curves[(0, 1), method].barrier) for method in measured.run.methods
    ]


def test_a_curve_is_toggled_by_mouse_and_by_keyboard(report: Path, visit: Open):
    page = visit(report)
    naive, ours = (page.get_by_role("button", name=name) for name in ("naive", "Gauss-Newton"))
    curve, full = page.locator("#curves .curve.m0"), ticks(page)
    naive.click()
    assert naive.get_attribute("aria-pressed") == "false"
    assert not curve.locator(".line").is_visible()
    assert page.locator("#curves .curve.m3 .line").is_visible()
    assert float(ticks(page)[-1]) < float(full[-1])
    naive.click()
    assert naive.get_attribute("aria-pressed") == "true"
    assert curve.locator(".line").is_visible()
    assert ticks(page) == full
    ours.focus()
    page.keyboard.press("Space")
    assert ours.get_attribute("aria-pressed") == "false"
    assert not page.locator("#curves .curve.m3 .line").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#curves .curve.m3 .line").is_visible()


def test_all_curves_can_be_hidden(report: Path, visit: Open):
    page = visit(report)
    for key in page.locator("button.key").all():
        key.click()
    assert page.locator("#curves .curve .line:visible").count() == 0
    assert page.locator("#curves .chord").count() == 0


def test_a_legend_entry_shows_its_barrier_in_the_chart(report: Path, visit: Open):
    page = visit(report)
    page.get_by_role("button", name="heads only").hover()
    barrier = number(RecordFile.read(report.parent).curves[(0, 1), "heads"].barrier)
    assert page.locator("#curves .rise-label").text_content() == f"barrier {barrier}"
    assert page.locator("#curves .curve.dim").count() == 3
    page.mouse.move(5, 5)
    assert page.locator("#curves .rise-label, #curves .dim").count() == 0


def test_quantities_have_their_own_axes(report: Path, visit: Open):
    page = visit(report)
    loss = ticks(page)
    paths = [path.get_attribute("d") for path in page.locator("#curves .curve .line").all()]
    page.get_by_role("button", name="accuracy").click()
    assert page.get_by_role("button", name="accuracy").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="loss", exact=True).get_attribute("aria-pressed") == "false"
    assert ticks(page) != loss
    assert all(tick.endswith(" %") for tick in ticks(page))
    assert page.locator("#curves .chord").count() == 0
    # Only losses have standard errors.
    assert page.locator("#curves .band").count() == 0
    assert not page.locator("#band-key").is_visible()
    assert page.locator("#log").is_disabled()
    page.get_by_role("button", name="calibrated loss").click()
    measured = RecordFile.read(report.parent)
    assert legend(page)["naive"] == number(measured.curves[(0, 1), "none"].calibrated_barrier)
    page.get_by_role("button", name="loss", exact=True).click()
    assert ticks(page) == loss
    assert [path.get_attribute("d") for path in page.locator("#curves .curve .line").all()] == paths


def test_the_logarithmic_scale_stretches_what_is_low(report: Path, visit: Open):
    page = visit(report)

    def height() -> float:
        return page.locator("#curves .curve.m3 .line").bounding_box()["height"]

    linear, before = ticks(page), height()
    page.locator("#log").click()
    assert page.locator("#log").get_attribute("aria-pressed") == "true"
    assert float(ticks(page)[0]) > 0
    assert height() > 1.5 * before
    page.locator("#log").click()
    assert ticks(page) == linear
    assert height() == pytest.approx(before, abs=0.01)


def test_values_at_a_t_are_shown_under_the_pointer_and_by_keys(report: Path, visit: Open):
    page = visit(report)
    measured = RecordFile.read(report.parent)
    barriers = legend(page)
    chart = page.locator("#curves svg")
    box = chart.bounding_box()
    quarter = page.locator("#curves svg text", has_text=re.compile(r"^0\.25$")).bounding_box()
    chart.hover(position={"x": quarter["x"] + quarter["width"] / 2 - box["x"], "y": 100})
    assert page.locator("#value-title").inner_text() == "t = 0.25"
    for name, method in zip(legend(page), measured.run.methods, strict=True):
        assert float(legend(page)[name]) == pytest.approx(measured.points[(0, 1), method][6].loss, rel=1e-3)
    page.mouse.move(5, 5)
    assert legend(page) == barriers
    chart = page.get_by_role("slider", name="loss along the line")
    page.locator("button.key").first.focus()
    page.keyboard.press("Shift+Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert chart.get_attribute("aria-valuenow") == str(measured.run.t[9])
    assert chart.get_attribute("aria-valuetext").startswith("t = 0.375, naive ")
    page.keyboard.press("Home")
    assert page.locator("#value-title").inner_text() == "t = 0"
    assert float(legend(page)["Gauss-Newton"]) == pytest.approx(measured.points[(0, 1), "none"][0].loss, rel=1e-3)


def test_another_pair_changes_everything_below(report: Path, visit: Open):
    page = visit(report)
    measured = RecordFile.read(report.parent)
    path, heat = page.locator("#curves .curve.m0 .line").get_attribute("d"), cells(page)
    page.get_by_label("Pair", exact=True).select_option(label="model-2 to model-3")
    assert page.locator("#curves .curve.m0 .line").get_attribute("d") != path
    assert legend(page)["naive"] == number(measured.curves[(1, 2), "none"].barrier)
    assert page.locator("#curves svg").text_content().count("model-3") == 1
    assert cells(page) != heat


def test_another_layer_changes_the_heat_maps(report: Path, visit: Open):
    page = visit(report)
    layers = RecordFile.read(report.parent).alignments[(0, 1), "gauss-newton"].layers
    seen: list[list[str]] = []
    for layer in layers:
        page.get_by_label("Layer", exact=True).select_option(str(layer.layer))
        taken = page.locator("#permutation rect.taken")
        places = taken.evaluate_all("all => all.map(one => one.dataset.cell)")
        assert places == [f"{i} {j}" for i, j in enumerate(layer.head_permutation)]
        page.locator(f"#costs rect.cell[data-cell='{places[0]}']").hover()
        said = page.locator("#cell").inner_text()
        assert said.startswith(f"Head 0 of A and head {layer.head_permutation[0]} of B, cost ")
        assert said.endswith(", paired")
        cost = layer.head_costs[0][layer.head_permutation[0]]
        assert float(said.split("cost ")[1].split(",")[0]) == pytest.approx(cost, rel=1e-3)
        seen.append(cells(page))
    assert len({tuple(fills) for fills in seen}) == len(layers)
    assert all(len(set(fills)) > 4 for fills in seen)


def test_a_click_on_a_layer_chooses_it(report: Path, visit: Open):
    page = visit(report)
    page.get_by_label("Layer", exact=True).select_option("0")
    chart = page.locator("#distances svg")
    place = {"x": 0.9 * chart.bounding_box()["width"], "y": 100}
    chart.hover(position=place)
    tip = page.locator("#distances .tip").inner_text()
    measured = RecordFile.read(report.parent)
    assert "layer 2" in tip
    after = measured.alignments[(0, 1), "paper"].layers[2].distance_after
    assert after is not None
    assert f"{after:.4g}" in tip
    chart.click(position=place)
    assert page.get_by_label("Layer", exact=True).input_value() == "2"
    page.locator("#conditions svg").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.get_by_label("Layer", exact=True).input_value() == "0"
    assert page.evaluate("document.activeElement.closest('.chart').id") == "conditions"


def test_bars_begin_at_zero(report: Path, visit: Open):
    """Distances here are all far from it, and so are those of most models that were trained apart."""
    page = visit(report)
    bottom = page.locator("#unit-distances .axis").bounding_box()["y"]
    bars = [bar.bounding_box() for bar in page.locator("#unit-distances .bar").all()]
    assert ticks(page, "#unit-distances")[0] == "0"
    assert all(bar["y"] + bar["height"] == pytest.approx(bottom, abs=1) for bar in bars)
    heights = [bar["height"] for bar in bars]
    assert [height / heights[0] for height in heights] == pytest.approx(
        [1, 8 / 9, 10 / 9, 8.5 / 9, 11 / 9, 1], abs=0.02
    )
    moved = [bar.bounding_box()["height"] for bar in page.locator("#unit-moves .bar").all()]
    assert [height / moved[0] for height in moved] == pytest.approx([1, 2, 3], abs=0.05)
    assert ticks(page, "#unit-moves")[0] == "0 %"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_stand_out_from_the_page(report: Path, visit: Open, scheme: str):
    page = visit(report, color_scheme=scheme)
    assert (luminance(page, "body", "backgroundColor") < 0.2) == (scheme == "dark")
    for selector in ("h1", ".about", "td", "td.error", ".hint", "button.key", ".facts dt", "#cell", ".what"):
        assert contrast(page, selector, "color") >= 4.5, selector
    assert contrast(page, "#curves text", "fill") >= 4.5
    for index in range(4):
        assert contrast(page, f"#curves .curve.m{index} .line", "stroke") >= 3
    assert contrast(page, "#permutation .taken", "fill") >= 3


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(report: Path, visit: Open, width: int):
    page = visit(report, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    chart = page.locator("#curves svg").bounding_box()
    assert chart["x"] >= 0
    assert chart["x"] + chart["width"] <= width


def test_the_charts_follow_the_window(report: Path, visit: Open):
    page = visit(report, width=1280)
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.querySelector('#curves svg').viewBox.baseVal.width < 400")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_summary_needs_no_script(report: Path, visit: Open):
    page = visit(report, java_script_enabled=False)
    assert page.locator("table").first.is_visible()
    assert page.get_by_role("row").count() > 12
    assert page.get_by_text("drawn by a script").is_visible()
    assert not page.locator("#curves").is_visible()


def test_names_cannot_break_the_page(tmp_path: Path, visit: Open):
    names = ("</script><script>console.log('broken')</script>", "<img src=x onerror=alert(1)> \"'", "x" * 90)
    measurements.write(tmp_path, measurements.run(names, ("none", "<b>bold</b>"), points=5))
    page = visit(page_of(tmp_path), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("button.key .name").all_inner_texts() == ["naive", "<b>bold</b>"]
    assert page.locator("img").count() == 0


def _lossless(run: RunRecord, folder: Path) -> None:
    """A line that is lost on the way, and one that was interrupted."""
    file = RecordFile(folder)
    file.append(run)
    for t in run.t:
        lost = {"loss": None, "calibrated_loss": None, "metrics": {"accuracy": None}} if 0 < t < 1 else {}
        file.append(measurements.point(run, (0, 1), "none", t).model_copy(update=lost))
    for t in run.t[:2]:
        file.append(measurements.point(run, (0, 1), "paper", t))


def test_an_interrupted_measurement_is_drawn_as_far_as_it_came(tmp_path: Path, visit: Open):
    run = measurements.run(("a", "b"), ("none", "paper", "gauss-newton"), points=5)
    _lossless(run, tmp_path)
    page = visit(page_of(tmp_path))
    assert "7 of 15 points are measured" in page.locator(".notice").first.inner_text()
    assert page.locator("#curves .lost").count() == 3
    assert page.locator("#curves .curve.m1 circle").count() == 2
    assert list(legend(page).values()) == ["–", "2 of 5", "0 of 5"]
    assert page.get_by_role("button", name="Gauss-Newton").is_disabled()
    assert not page.locator("#heads-section").is_visible()


def test_a_measurement_that_has_just_begun_has_an_empty_chart(tmp_path: Path, visit: Open):
    RecordFile(tmp_path).append(measurements.run(points=5))
    page = visit(page_of(tmp_path))
    assert page.locator("#curves svg").is_visible()
    assert page.locator("#curves .curve circle").count() == 0
