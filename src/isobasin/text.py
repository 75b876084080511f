"""Text that came from outside, made harmless where people see it: names of files, tensors, models, labels and data."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

# Controls, formats (such as marks that turn the direction of writing), halves of characters, ends of lines.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What spreadsheets take for the beginning of a formula, in either width; so they do tabs and line breaks.
_FORMULA = tuple("=+-@＝＋－＠")
_MARKUP = re.compile(r"([\\`*_\[\]|~])")


def printable(text: str) -> str:
    r"""The text with every character that isn't seen, or that does something, written out: `\x1b`, `\n`, `\u202e`.

    A terminal obeys such characters, and a name that has them could pass for something that was never printed.
    """
    if text.isprintable():
        return text
    return "".join(_written_out(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """A text whose lines are joined by spaces; blank ones are dropped."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def csv_cell(value: object) -> object:
    """A value for a CSV file; text that a spreadsheet would take for a formula gets an apostrophe before it.

    So the Open Worldwide Application Security Project says. Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown(text: str) -> str:
    """Text that a page in Markdown shows as it is: neither HTML nor Markdown in it means anything."""
    return _MARKUP.sub(r"\\\1", html.escape(printable(text), quote=False))


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
    """A result that has a plain form: its fields, and those of its properties that `_also` names."""

    _also: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain({**vars(self), **{name: getattr(self, name) for name in self._also}})


def near(name: str, choices: Iterable[str]) -> str:
    """What was perhaps meant by a wrong name, or what there is."""
    known = [str(choice) for choice in choices]
    found = get_close_matches(name, known, n=1)
    return f"did you mean {found[0]!r}?" if found else f"there is {', '.join(map(repr, known)) or 'none'}"
