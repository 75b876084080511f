import json
import re
from html.parser import HTMLParser
from pathlib import Path

import measurements
import pytest

from isobasin.records.curves import finished_curves
from isobasin.records.file import Measured, RecordFile
from isobasin.reports.page import headline, payload, render
from isobasin.reports.view import View, view
from isobasin.text import printable

pytest.importorskip("jinja2")

EVIL = (
    "</script><script>alert(1)</script>",
    "\"quotes' & <u>bold {{ 7 * 7 }}",
    "line\u2028separator\x1b]0;\u202e <!-- --><img src=x onerror=alert(1)>",
)


class Page(HTMLParser):
    """The tags of a page, and the texts of its scripts and of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measurements.write(tmp_path_factory.mktemp("run"), measurements.run(points=5))


def test_everything_that_came_from_outside_is_escaped(tmp_path: Path):
    methods = ("none", EVIL[0])
    run = measurements.run(EVIL, methods, points=3)
    run = run.model_copy(
        update={
            "data": run.data.model_copy(update={"source": EVIL[1], "split": EVIL[2], "task": EVIL[0], "notes": EVIL}),
            "settings": {EVIL[0]: EVIL[0], "list": list(EVIL), "table": {"a": EVIL[0]}},
            "versions": {EVIL[2]: EVIL[2]},
        }
    )
    plain = measurements.write(tmp_path / "plain", measurements.run(("a", "b", "c"), ("none", "other"), points=3))
    expected, page = Page(render(view(plain))), Page(render(view(measurements.write(tmp_path / "evil", run))))
    # Slashes are where a path may be broken.
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in expected.tags} | {"wbr"}
    # The same scripts, apart from the data and the notes above.
    assert page.scripts[1:] == expected.scripts[1:]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<" not in page.scripts[0]
    data = json.loads(page.scripts[0])
    assert [pair["a"] for pair in data["pairs"]] == [pair.a for pair in view(RecordFile.read(tmp_path / "evil")).pairs]
    assert data["methods"][1]["name"] == EVIL[0]
    for text in EVIL:
        assert printable(text) in page.text
    assert not {"\u2028", "\u202e", "\x1b"} & set(page.text + page.scripts[0])
    assert "49" not in page.text.split(EVIL[1])[0]


def test_the_page_needs_nothing_else(measured: Measured):
    page = Page(render(view(measured)))
    links = [(tag, name, value) for tag, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert links == [("link", "href", "data:,")]
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "video", "audio", "form"}
    text = render(view(measured))
    assert set(re.findall(r"https?://[^\s\"'`]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|sendBeacon|WebSocket", text)
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_table_is_there_without_scripts(measured: Measured):
    text = " ".join(Page(render(view(measured))).text.split())
    for curve in measured.curves.values():
        assert curve.barrier is not None
        assert f"{curve.barrier:.3f} ± {curve.barrier_error:.3f}" in text
        assert curve.relative is not None
        assert ("100 %" if curve.method == "none" else f"{100 * curve.relative:.1f} %") in text
    assert text.replace(" ", "").count("O(63)31.50020.2501.000embeddings7") == 3
    for part in ("model-1 to model-2", "digits, test", "540 examples", "13e9a0", "transformers", "max condition"):
        assert part in text
    assert "nfinished" not in text
    # What wasn't asked for.
    assert "columns" not in text


def test_paths_are_broken_at_their_slashes(tmp_path: Path):
    names = ("/data/runs/a<b/seed0", "/data/runs/a<b/seed1")
    text = render(view(measurements.write(tmp_path, measurements.run(names, ("none",), points=3))))
    assert text.count("<b>/<wbr>data/<wbr>runs/<wbr>a&lt;b/<wbr>seed0</b>") == 1


def test_the_data_are_those_of_the_records(measured: Measured):
    data = payload(view(measured))
    methods = list(measured.run.methods)
    assert data["t"] == measured.run.t
    assert [quantity["id"] for quantity in data["quantities"]] == ["loss", "accuracy", "calibrated_loss", "temperature"]
    for pair, shown in zip([(0, 1), (0, 2), (1, 2)], data["pairs"], strict=True):
        for index, method in enumerate(methods):
            points, line = measured.points[pair, method], shown["lines"][index]
            assert line["t"] == [point.t for point in points]
            assert line["values"]["loss"] == pytest.approx([point.loss for point in points], rel=1e-4)
            assert line["values"]["accuracy"] == pytest.approx([one.metrics["accuracy"] for one in points], rel=1e-4)
            assert line["worst"] == measured.curves[pair, method].worst_t
            assert line["errors"] == pytest.approx(measured.curves[pair, method].loss_errors, rel=1e-4)
        assert shown["layers"][0] is None
        for index, method in enumerate(methods[1:], start=1):
            for layer, found in zip(measured.alignments[pair, method].layers, shown["layers"][index], strict=True):
                assert found["heads"] == layer.head_permutation
                assert found["before"] == pytest.approx(layer.distance_before, rel=1e-4)
                assert found["condition"] == pytest.approx(layer.condition, rel=1e-4)
                for row, costs in zip(data["costs"][found["costs"]], layer.head_costs, strict=True):
                    assert row == pytest.approx(costs, rel=1e-4)
        assert shown["units"][:3] == [None, [], []]
        assert [(unit["layer"], unit["after"], unit["moved"]) for unit in shown["units"][3]] == [
            ("0", 8.0, 0.25),
            ("1", 8.5, 0.5),
        ]
    # Three methods share the costs of two layers of three pairs.
    assert len(data["costs"]) == 6


def test_a_large_measurement_stays_small(tmp_path: Path):
    measured = measurements.write(tmp_path, measurements.run(batches=40), layers=12, heads=12)
    assert len(render(view(measured)).encode()) < 400_000


def _headline(shown: View) -> str:
    return headline(shown).replace("\u00a0", " ")


def test_the_headline_says_what_was_found(measured: Measured):
    curves = finished_curves(measured)
    naive = [curves[pair, "none"].barrier for pair in ((0, 1), (0, 2), (1, 2))]
    ours = [curves[pair, "gauss-newton"] for pair in ((0, 1), (0, 2), (1, 2))]
    low, high = (f"{100 * end([curve.relative for curve in ours]):.2g}" for end in (min, max))
    heights = [curve.barrier for curve in ours]
    assert _headline(view(measured)) == (
        f"On the straight line between two of these models the loss rises by {min(naive):.2g} to {max(naive):.2g}. "
        f"After alignment (Gauss-Newton) by {min(heights):.2g} to {max(heights):.2g}: {low} to {high} % of that."
    )


def test_the_headline_claims_nothing_that_was_not_measured(tmp_path: Path):
    run = measurements.run(("a", "b"), points=3)
    begun = measurements.write(tmp_path / "begun", run, points=3)
    assert "rises" not in _headline(view(begun))
    only = measurements.write(tmp_path / "only", run, points=6)
    assert "After alignment (heads only)" in _headline(view(only))
    alone = measurements.run(("a", "b"), points=3).model_copy(update={"methods": ("none",)})
    shown = view(measurements.write(tmp_path / "alone", alone, points=3))
    assert _headline(shown).startswith("On the straight line between the two models the loss rises by")
    assert "alignment" not in _headline(shown)
    assert [style.name for style in shown.styles.values()] == ["naive"]
    refined = alone.model_copy(update={"models": tuple(x.model_copy(update={"moved": True}) for x in alone.models)})
    shown = view(measurements.write(tmp_path / "refined", refined, points=3))
    assert [style.name for style in shown.styles.values()] == ["as given"]
    lost = Measured(
        run, {key: [point.model_copy(update={"loss": None}) for point in points] for key, points in only.points.items()}
    )
    assert "rises" not in _headline(view(lost))
