"""Whatever a user chooses from is written once, and read from there by command line, files, library and docs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command
from typer.models import OptionInfo

import isobasin
from isobasin.choices import WAYS, Choice, Device, Dtype, Method, Scope, Way, page
from isobasin.cli.program import app
from isobasin.errors import ChoiceError, IsobasinError
from isobasin.verbs.settings import MAX_CONDITION

SOURCE = Path(isobasin.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "choices.md"
CHOICES = Choice.__subclasses__()
FILES = [path for path in SOURCE.rglob("*.py") if path.name != "choices.py"]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run make pages"


def test_choices_need_no_torch():
    program = "import sys, isobasin.choices; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: choices.__name__)
def test_every_member_says_what_it_means(choices: type[Choice]):
    assert choices.what().endswith(".")
    for member in choices:
        assert choices(str(member)) is member
        assert f"{member} {member!r}" == f"{member.value} '{member.value}'"
        assert member.meaning
        assert not member.meaning.endswith(".")
        assert f"* {member}: {member.meaning}." in (choices.__doc__ or "")
    assert len({member.meaning for member in choices}) == len(choices)


def test_ways_are_the_methods_and_none():
    assert [*map(str, Way)] == ["none", *map(str, Method)]
    assert [Way(method).meaning for method in Method] == [method.meaning for method in Method]
    assert set(WAYS) <= set(Way)


def test_types_to_write_are_those_with_a_limit():
    assert {choice.resolve() for choice in Dtype} == {None, *MAX_CONDITION}


def _values(source: Path) -> Iterator[tuple[str, set[Any]]]:
    """Every enumeration of strings and every `Literal` in a file."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ClassDef):
            given = [item.value for item in node.body if isinstance(item, ast.Assign)]
            found = {item.value for item in given if isinstance(item, ast.Constant)}
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            found = {item.value for item in ast.walk(node.slice) if isinstance(item, ast.Constant)}
        else:
            continue
        yield f"{source.relative_to(SOURCE)}: {ast.unparse(node).splitlines()[0]}", found


def test_no_choice_is_written_a_second_time():
    """Neither an enumeration nor a `Literal` elsewhere has two names that one choice has."""
    known = [{str(member) for member in choices} for choices in CHOICES]
    copies = [where for path in FILES for where, found in _values(path) if any(len(found & k) > 1 for k in known)]
    assert copies == []


def test_no_docstring_lists_all_names_of_a_choice():
    known = [{str(member) for member in choices} for choices in CHOICES]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                named = set(re.findall(r'"([\w-]+)"', str(node.value.value)))
                assert not any(choice <= named for choice in known), f"{path}, line {node.lineno}"


def _options() -> Iterator[tuple[str, type[StrEnum], OptionInfo]]:
    """Every option of every command that takes one of several names."""

    def below(name: str, command: Any) -> Iterator[tuple[str, type[StrEnum], OptionInfo]]:
        for inner in command.list_commands(None) if hasattr(command, "list_commands") else ():
            yield from below(f"{name} {inner}", command.get_command(None, inner))
        for option, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *said = get_args(hint) or (hint,)
            for part in get_args(kind) or (kind,):
                if isinstance(part, type) and issubclass(part, StrEnum):
                    yield f"{name} {option}", part, said[0]

    return below("isobasin", get_command(app))


def test_the_help_lists_every_member():
    found = {name: (choices, option.help or "") for name, choices, option in _options()}
    assert {"isobasin align method", "isobasin merge head", "isobasin experiment run engine"} <= found.keys()
    for name, (choices, text) in found.items():
        assert issubclass(choices, Choice), name
        assert text.startswith(choices.what()), name
        assert text.split("\n\n")[1:] == choices.listed(), name


@pytest.mark.parametrize(
    ("choices", "name", "hint"),
    [
        (Method, "guass-newton", "method 'guass-newton': did you mean 'gauss-newton'?"),
        (Scope, "all", "scope 'all': there is 'attention', 'block', 'model'"),
        (Device, 3, "device 3: there is 'auto', 'cpu', 'cuda'"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_there_is(choices: type[Choice], name: Any, hint: str):
    with pytest.raises(ChoiceError) as caught:
        choices(name)
    assert str(caught.value) == hint
    assert isinstance(caught.value, IsobasinError)
    with pytest.raises(IsobasinError):
        isobasin.align("a", "b", method="guass-newton")
