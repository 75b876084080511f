"""How a CSV or TSV file is to be read: separator, header, quotes."""

from __future__ import annotations

import csv
import gzip
import lzma
from pathlib import Path
from typing import Any, TextIO

_SAMPLE = 50
_LONGEST = 2**24


def csv_arguments(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Arguments for the CSV loader of `datasets`, and notes.

    A first row with a number, an empty cell, a long cell or two equal ones is taken as data; columns are then named
    "0", "1" …. A TSV file whose lines all have the same number of tabs is read without quotes, as GLUE's are.
    """
    tabs = ".tsv" in path.suffixes
    arguments: dict[str, Any] = {"sep": "\t"} if tabs else {}
    quoting = csv.QUOTE_MINIMAL
    if tabs and _even(path):
        quoting = arguments["quoting"] = csv.QUOTE_NONE
    with _opened(path) as file:
        lines = iter(lambda: _line(file), "")
        first = next(csv.reader(lines, delimiter="\t" if tabs else ",", quoting=quoting), [])
    if _is_header(first):
        return arguments, []
    names = [str(index) for index in range(len(first))]
    note = f"{path.name} has no header: its columns are called {', '.join(names)}"
    return arguments | {"header": None, "column_names": names}, [note]


def _opened(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", newline="")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _even(path: Path) -> bool:
    """Whether all lines have the same number of tabs, so that none is inside quotes."""
    with _opened(path) as file:
        return len({line.count("\t") for line in iter(lambda: _line(file), "") if line.strip()}) == 1


def _line(file: TextIO) -> str:
    """The next line, refused where it is longer than any table has: a packed file may hold one without end."""
    line = file.readline(_LONGEST)
    if len(line) == _LONGEST:
        raise ValueError(f"a line has more than {_LONGEST} characters")
    return line


def _is_header(cells: list[str]) -> bool:
    def named(cell: str) -> bool:
        text = cell.strip().lstrip("\ufeff")
        return bool(text) and len(text) <= _SAMPLE and not text.replace(".", "").replace("-", "").isdigit()

    return len(set(cells)) == len(cells) and all(map(named, cells))
