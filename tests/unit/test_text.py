"""Names from outside where people, spreadsheets and browsers read them."""

from __future__ import annotations

import pytest

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
