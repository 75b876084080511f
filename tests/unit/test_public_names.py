"""The public names: closed under what their own signatures say, and the same to type checkers as when they are used."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import isobasin

SOURCE = Path(isobasin.__file__).parent
PUBLIC: dict[str, Any] = {name: getattr(isobasin, name) for name in isobasin.__all__ if name != "__version__"}


def _checked_only(source: Path) -> Iterator[tuple[str, str]]:
    """Names, with their modules, that a file imports for type checkers alone."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for found in node.body:
                if isinstance(found, ast.ImportFrom):
                    yield from ((alias.asname or alias.name, str(found.module)) for alias in found.names)


LATE = {name: module for path in SOURCE.rglob("*.py") for name, module in _checked_only(path)}


def test_type_checkers_see_the_names_that_are_loaded_on_first_use():
    assert dict(_checked_only(SOURCE / "__init__.py")) == {
        n: f"isobasin.{home}" for n, home in isobasin._HOME_OF.items()
    }
    assert set(dir(isobasin)) == set(isobasin.__all__)


def _hints(annotated: Any, module: str) -> dict[str, Any]:
    names = dict(vars(sys.modules[module]))
    while True:
        try:
            return get_type_hints(annotated, globalns=names)
        except NameError as error:
            late = LATE.get(error.name)
            names[error.name] = (
                getattr(import_module(LATE[error.name]), error.name) if late else import_module(error.name)
            )


def _functions(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that one class defines."""
    for name, member in vars(owner).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        inner = member.func if isinstance(member, cached_property) else inner
        if inspect.isfunction(inner) and (not name.startswith("_") or name == "__call__"):
            yield name, inner


def _signatures(name: str, what: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Annotations of a function; of a class its fields, methods and properties, inherited ones too."""
    if not inspect.isclass(what):
        yield name, _hints(what, what.__module__)
        return
    for owner in (base for base in what.__mro__ if base.__module__.startswith("isobasin")):
        said = vars(owner).get("__annotations__", {})
        fields = {n: re.sub(r"^ClassVar\[(.*)\]$", r"\1", hint) for n, hint in said.items() if not n.startswith("_")}
        yield name, _hints(SimpleNamespace(__annotations__=fields), owner.__module__)
        for method, inner in _functions(owner):
            yield f"{name}.{method}", _hints(inner, inner.__module__)


def _types(hint: Any) -> Iterator[type]:
    """The classes that an annotation names."""
    inner = [part for given in get_args(hint) for part in (given if isinstance(given, list) else [given])]
    named = get_origin(hint) or hint
    if isinstance(named, type):
        yield named
    for part in inner:
        yield from _types(part)


def unnamed(public: dict[str, Any]) -> set[str]:
    """Types of isobasin that signatures of these names have and that have no public name."""
    known = {id(what) for what in public.values()}
    return {
        f"{where}: {kind.__module__}.{kind.__qualname__}"
        for name, what in public.items()
        for where, hints in _signatures(name, what)
        for hint in hints.values()
        for kind in _types(hint)
        if kind.__module__.startswith("isobasin") and id(kind) not in known
    }


def test_what_public_signatures_need_is_public():
    assert unnamed(PUBLIC) == set()


def test_a_type_without_a_public_name_is_seen():
    """In a field, a return value, an argument inside of a union, and what a class inherits."""
    for missing, place in (
        ("PairCheck", "Check"),
        ("Moved", "apply"),
        ("Scope", "align"),
        ("Statistics", "Move"),
        ("Move", "Alignment"),
    ):
        found = unnamed({name: what for name, what in PUBLIC.items() if name != missing})
        assert any(line.startswith(place) and line.endswith(f".{missing}") for line in found)


def test_public_names_say_what_they_are():
    assert [name for name, what in PUBLIC.items() if not inspect.getdoc(what)] == []
