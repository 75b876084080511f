"""How tables, numbers and lists look, and what is offered."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner, Result

from isobasin import cli
from isobasin.cli import tables
from isobasin.cli.alignment_report import alignment_report
from isobasin.cli.console import QUIET, SCHEMA_VERSION, complain, console, show, show_json, show_path, working
from isobasin.cli.equivalence_report import equivalence_report
from isobasin.cli.panels import COMMANDS
from isobasin.cli.program import app
from isobasin.errors import warn

PROGRAM: Any = get_command(app)
VERBS = PROGRAM.list_commands(None)


def test_every_verb_is_found_by_the_name_of_its_file():
    files = {path.stem for path in Path(cli.__path__[0]).glob("*.py") if "\nEXAMPLE = " in path.read_text()}
    assert set(VERBS) == files
    assert {"align", "apply", "verify", "experiment"} <= files


def test_every_verb_and_every_option_of_several_has_a_heading():
    listed = [name for names in COMMANDS.values() for name in names]
    assert listed == VERBS
    commands = [PROGRAM.get_command(None, verb) for verb in VERBS]
    assert [command.rich_help_panel for command in commands] == [h for h, names in COMMANDS.items() for _ in names]
    options = [p for command in commands for p in command.params if p.param_type_name == "option"]
    several = {name for name, count in Counter(p.name for p in options).items() if count > 1}
    assert {p.name for p in options if p.name in several and p.rich_help_panel is None} == {"t"}


def test_a_verb_is_imported_when_it_is_asked_for():
    program = (
        "import sys\n"
        "from typer.main import get_command\n"
        "from isobasin.cli.program import app\n"
        "get_command(app).get_command(None, 'symmetry')\n"
        "print(*(name for name in sys.modules if name in ('torch', 'isobasin.cli.align', 'isobasin.cli.symmetry')))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["isobasin.cli.symmetry"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_describes_everything_and_ends_with_an_example(verb: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: isobasin {verb} " in result.stdout
    for parameter in PROGRAM.get_command(None, verb).params:
        assert parameter.help, f"{verb} {parameter.name}"


def test_no_command_shows_the_help():
    result: Result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in VERBS)


def _layer(index: int, status: str, heads: int) -> Any:
    statistics = SimpleNamespace(
        distance_before=0.000123456,
        distance_after=1.23456e-12,
        condition=12345.678,
        iterations=1000,
        status=status,
        rounding=0.0123,
    )
    element = SimpleNamespace(head_permutation=lambda: list(reversed(range(heads))))
    return SimpleNamespace(layer=index, statistics=statistics, element=element)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_widest_rows_fit(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", str(columns))
    statuses = ("exact", "converged", "max-iterations", "capped", "capped")
    layers = tuple(_layer(98 + i, status, 64) for i, status in enumerate(statuses))
    alignment: Any = SimpleNamespace(
        layers=layers,
        feedforward=(),
        stream=None,
        untied=False,
        distance=lambda: {"before": 123456.0, "after": math.nan},
    )
    show(*alignment_report(alignment, None))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 or columns > 80
    # One line per layer, and nothing cut off but long permutations.
    rows = [line for line in shown.splitlines() if "63 62 61" in line]
    assert len(rows) == 5
    assert all(line.count("…") == 1 and line.endswith(word) for line, word in zip(rows, _shown(statuses), strict=True))
    assert "Layers 101, 102: condition capped at 1.23e+04" in shown
    assert "–" in shown


def _shown(statuses: tuple[str, ...]) -> list[str]:
    return [status.replace("max-iterations", "max steps") for status in statuses]


def test_the_evidence_fits_a_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "80")
    degeneracy = SimpleNamespace(rank_deficient=(("key", 0), ("key", 3)), duplicates=((0, 1), (2, 5)))
    layer = SimpleNamespace(
        layer=100,
        equivalent=False,
        head_permutation=tuple(reversed(range(64))),
        circuit_error=1.23e-10,
        bias_error=math.inf,
        tolerance=1e-9,
        distance=0.0,
        condition=1.234e-5,
        degeneracy=degeneracy,
    )
    found: Any = SimpleNamespace(
        layers=(layer,),
        feedforward=(0, 1, 2),
        stream="{±1}^4096 ⋊ S_4096",
        other_tensors=("[bold]x",) * 7,
        shapes={},
        configuration=("n_ctx",),
        equivalent=False,
        conclusive=False,
    )
    show(*equivalence_report(found))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "key is rank-deficient in heads 0, 3." in shown
    assert "Feed-forward blocks of layers 0–2 are equal after a move of their units." in shown
    assert "duplicate heads, with equal attention scores: 0 and 1, 2 and 5." in shown
    assert "[bold]x and 2 more." in shown


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (tables.heads([0, 1, 2]), "in order"),
        (tables.heads([2, 0, 1]), "2 0 1"),
        (tables.heads(list(range(11, -1, -1)), 14), "11 10 9 8 7 …"),
        (tables.ranges([5, 0, 1, 2, 7, 8]), "0–2, 5, 7, 8"),
        (tables.ranges([0, 1, 2, 3]), "0–3"),
        (tables.layers([3]), "layer 3"),
        (tables.layers([0, 3]), "layers 0, 3"),
        (tables.listed(["a", "b"]), "a, b"),
        (tables.listed(list("abcdefg")), "a, b, c, d, e and 2 more"),
        (tables.number(math.nan), "–"),
        (tables.number(0.0), "0"),
        (tables.number(123.456), "123.5"),
        (tables.number(1.5e-9), "1.50e-09"),
        (tables.small(math.inf), "–"),
        (tables.change(2.0, 1.0), "-50.0%"),
        (tables.change(0.0, 1.0), "–"),
    ],
)
def test_small_pieces(shown: str, text: str):
    assert shown == text


HOSTILE = "a\x1b[2Jb\u202ec\n[red]d[/red]\x9b"
HARMLESS = r"a\x1b[2Jb\u202ec\n[red]d[/red]\x9b"


def test_nothing_that_a_terminal_obeys_comes_out_of_names(capsys: pytest.CaptureFixture[str]):
    rows = tables.table(HOSTILE, "number", left=(HOSTILE,), title=HOSTILE)
    rows.add_row(HOSTILE, "1")
    rows.add_row(Text(HOSTILE, "green"), "22")
    show(HOSTILE, rows, Text.assemble("before ", (HOSTILE, "bold"), " after"))
    show_path("Written to", HOSTILE)
    show_json({HOSTILE: HOSTILE})
    complain(HOSTILE.replace("\n", " "))
    said = capsys.readouterr()
    assert all(line.isprintable() for text in said for line in text.splitlines())
    width = len(HARMLESS)
    assert said.out.splitlines() == [
        HARMLESS,
        HARMLESS,
        f"{HARMLESS}  number",
        "─" * (width + 8),
        f"{HARMLESS}       1",
        f"{HARMLESS}      22",
        "",
        f"before {HARMLESS} after",
        f"Written to {HARMLESS}",
        '{"command": null, "schema_version": 1, '
        + r'"a\u001b[2Jb\u202ec\n[red]d[/red]\u009b": "a\u001b[2Jb\u202ec\n[red]d[/red]\u009b"}',
    ]
    assert said.err == f"error: {HARMLESS.replace(chr(92) + 'n', ' ')}\n"


def test_styles_stay_where_they_were_beside_what_is_written_out():
    text = Text("a\x1bb")
    text.stylize("red", 2, 3)
    screen = _screen()
    screen.print(text)
    assert screen.file.getvalue() == "a\\x1b\x1b[31mb\x1b[0m\n"


def _screen() -> Any:
    """Our console on what it takes for a terminal."""
    file = io.StringIO()
    return type(console())(file=file, force_terminal=True, color_system="standard", width=80, markup=False)


def test_bars_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch):
    screen = _screen()
    monkeypatch.setattr("isobasin.cli.console.console", lambda stderr: screen)
    with working("reading") as progress:
        progress("[red]a\x1b]0;title\x07", 1, 2)
    assert "[red]a" in screen.file.getvalue()
    assert "\x1b]0" not in screen.file.getvalue()


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]):
    show_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": "é"})
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == SCHEMA_VERSION
    assert {**found, "command": 0, "schema_version": 0} == {
        **{"command": 0, "schema_version": 0},
        **{"a": None, "b": [None, 1.5], "c": {"d": None}, "e": "é"},
    }


def test_a_screen_without_columns_is_a_wide_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "0")
    show("a sentence of several words")
    assert capsys.readouterr().out == "a sentence of several words\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_lines_without_a_terminal_however_long_a_step_takes(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("isobasin.cli.console._FIRST", 0.05)
    monkeypatch.setattr("isobasin.cli.console._EVERY", 0.1)
    token = QUIET.set(quiet)
    try:
        with working("reading") as progress:
            time.sleep(0.1)
            progress("writing", 1, 2)
            time.sleep(0.4)
            warn("something")
    finally:
        QUIET.reset(token)
    said = capsys.readouterr().err.splitlines()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""
    if quiet:
        assert said == []
    else:
        assert said[0] == "progress: reading (0 s)"
        assert said[1:-1] == ["progress: writing 1/2 (0 s)"] * (len(said) - 2)
        assert 2 <= len(said[1:-1]) <= 4
        assert said[-1] == "warning: something"


def test_a_quiet_program_says_errors_alone_and_a_verbose_one_where_they_are(
    cli: Callable[..., Result], models: dict[str, Path], tmp_path: Path
):
    beyond = ("interpolate", models["a"], models["b"], "-t", "1.5", "--force", "-o", tmp_path / "out")
    assert "warning: t is 1.5" in cli(*beyond).stderr
    assert cli("-q", *beyond).stderr == ""
    assert "warning: t is 1.5" in cli(*beyond).stderr  # only that one was
    missing = ("scramble", tmp_path / "nothing", "-o", tmp_path / "out")
    assert len(cli("--quiet", *missing).stderr.splitlines()) == 1
    assert "Traceback" in cli("-v", *missing).stderr
    assert "Traceback" not in cli(*missing).stderr
