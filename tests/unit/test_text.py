"""Names from outside where people, spreadsheets and browsers read them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from isobasin.plain import Plain
from isobasin.text import csv_cell, markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("wörter 10\u00a0% → Ω 🙂", "wörter 10\u00a0% → Ω 🙂"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\nb\r\tc\x7f", "a\\nb\\r\\tc\\x7f"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("exe\u202egpj\u2066.\u200b", "exe\\u202egpj\\u2066.\\u200b"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("caf\udce9", "caf\\udce9"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_seen_is_written_out(text: str, shown: str):
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "＝1"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str):
    assert csv_cell(text) == f"'{text}"


def test_tabs_and_line_breaks_begin_no_formula():
    assert [csv_cell(f"{c}=1") for c in "\t\r\n"] == ["\\t=1", "\\r=1", "\\n=1"]


@pytest.mark.parametrize("value", [-1.5, -1, None, 0.0, "a=1", "", "1-2", "–"])
def test_other_cells_stay(value: object):
    assert csv_cell(value) == value


def test_markdown_shows_text_as_it_is():
    assert markdown("<img src=x onerror=alert(1)> & ![a](b) *c* `d` e_f|g\n# h") == (
        "&lt;img src=x onerror=alert(1)&gt; &amp; !\\[a\\](b) \\*c\\* \\`d\\` e\\_f\\|g\\\\n# h"
    )
    assert markdown("ViT (d = 32), 5 %") == "ViT (d = 32), 5 %"


@dataclass(frozen=True)
class Part(Plain):
    layer: int
    error: float


@dataclass(frozen=True)
class Whole(Plain):
    name: str
    parts: tuple[Part, ...]
    scale: float = 1 / 3
    nothing: None = None
    heads: tuple[int, ...] = (1, 0)
    many: tuple[float, ...] = (0.5,) * 100
    _also = ("good",)

    @property
    def good(self) -> bool:
        return True


def test_a_result_prints_in_a_line():
    found = Whole("<b>\x1b", tuple(Part(layer, 1e-9) for layer in range(12)))
    assert repr(found) == r"Whole(good=True, name=<b>\x1b, parts=[12], scale=0.3333, heads=[1, 0], many=[100])"
    assert repr(found.parts[0]) == "Part(layer=0, error=1e-09)"


def test_a_notebook_shows_all_of_a_result():
    shown = Whole("<b>\x1b", tuple(Part(layer, layer / 3) for layer in range(12)))._repr_html_()
    assert "<b>Whole</b>" in shown
    assert r"<th>name</th><td>&lt;b&gt;\x1b</td>" in shown
    assert "<th>many</th><td>100 entries</td>" in shown
    assert shown.count("<tr>") == 5 + 1 + 12
    assert "<tr><td>11</td><td>3.667</td></tr>" in shown
    assert len(Whole("x", tuple(Part(i, 0.0) for i in range(10_000)))._repr_html_()) < 20_000
