"""Results as plain values: for JSON, in a line, and as tables of a page such as a notebook."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from isobasin.text import one_line, printable


def as_json(content: Any, indent: int | None = None) -> str:
    """Plain values as JSON that every reader takes: what is not a finite number is null."""
    return json.dumps(finite(content), allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    """A plain value, in dictionaries and lists too, with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """A value for JSON: results and dictionaries by their entries, and what has none as it prints."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Plain):
        return value.to_json()
    return value if value is None or isinstance(value, (int, float)) else str(value)


class Plain:
    """A result that has a plain form: its fields, and those of its properties that `_also` names.

    It prints in a line, and a notebook shows it as tables, below the picture that `_picture` draws.
    """

    _also: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A dataclass keeps what is there, and would print all of a large result otherwise.
        cls.__repr__ = vars(cls).get("__repr__", Plain.__repr__)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain({**vars(self), **{name: getattr(self, name) for name in self._also}})

    def __repr__(self) -> str:
        also = {name: getattr(self, name) for name in self._also}
        shown = {name: _in_a_line(value) for name, value in {**also, **vars(self)}.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in shown.items() if text)})"

    def _picture(self) -> str:
        """An element of a page that shows it, if there is one."""
        return ""

    def _repr_html_(self) -> str:
        rows, tables = _tables(self.to_json())
        single = [f"<tr><th>{html.escape(name)}</th><td>{cell(value)}</td></tr>" for name, value in rows]
        body = f"<table>{''.join(single)}</table>" if single else ""
        lists = [f"<p>{html.escape(name)}</p>{table(found)}" for name, found in tables.items()]
        return f"<p><b>{type(self).__name__}</b></p>{self._picture()}{body}{''.join(lists)}"


_SHORT = 4
"""Values of a list that are still shown in a line."""

_LONG = 64
"""Those that a table shows."""

_ROWS = 200
"""Rows of a table in a notebook, at most."""


def _in_a_line(value: Any) -> str:
    """What a line says of a field: its value, how many values, or nothing."""
    if value is None or isinstance(value, (bool, int, float, str, os.PathLike, Plain)):
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return one_line(printable(text))
    if isinstance(value, Mapping):
        return f"{{{len(value)}}}" if value else ""
    if isinstance(value, Sequence):
        few = len(value) <= _SHORT and all(isinstance(item, (int, float, str)) for item in value)
        return f"[{', '.join(map(_in_a_line, value)) if few else len(value)}]" if value else ""
    return type(value).__name__


def _tables(found: Mapping[str, Any], before: str = "") -> tuple[list[tuple[str, Any]], dict[str, list[Any]]]:
    """The single values of a plain form, those inside of others by both names; and its lists of objects."""
    rows: list[tuple[str, Any]] = []
    tables: dict[str, list[Any]] = {}
    for name, value in found.items():
        called = f"{before}{name}".replace("_", " ")
        if isinstance(value, dict):
            inner, more = _tables(value, f"{called} ")
            rows, tables = rows + inner, tables | more
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables[called] = value
        elif value is not None and value != []:
            rows.append((called, value))
    return rows, tables


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> str:
    """Objects as a table of a page.

    Args:
        rows: One for each.
        columns: Entry → heading; None: the entries of the first object that are single values or short lists.
    """
    if columns is None:
        columns = {name: name.replace("_", " ") for name, x in rows[0].items() if not isinstance(x, dict)}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns.values())
    body = "".join("<tr>" + "".join(f"<td>{cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows[:_ROWS])
    more = f"<p>… and {len(rows) - _ROWS} more</p>" if len(rows) > _ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def cell(value: object) -> str:
    """A value in a table of a page."""
    if isinstance(value, (list, tuple)):
        long = len(value) > _LONG or any(isinstance(item, (list, tuple)) for item in value)
        return f"{len(value)} entries" if long else ", ".join(cell(item) for item in value)
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else html.escape(printable(str(value)))
