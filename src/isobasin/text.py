"""Text that came from outside, made harmless where people see it: names of files, tensors, models, labels and data."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# Controls, formats (such as marks that turn the direction of writing), halves of characters, ends of lines.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What spreadsheets take for the beginning of a formula, in either width; so they do tabs and line breaks.
_FORMULA = tuple("=+-@＝＋－＠")
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
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


def size(count: float) -> str:
    """A number of bytes for people."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"


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


def near(name: str, choices: Iterable[str]) -> str:
    """What was perhaps meant by a wrong name, or what there is."""
    known = [str(choice) for choice in choices]
    found = get_close_matches(name, known, n=1)
    return f"did you mean {found[0]!r}?" if found else f"there is {', '.join(map(repr, known)) or 'none'}"
