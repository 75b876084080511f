"""A way to damage an input, and values that no reader expects."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Draw = random.Random
"""Where all chance comes from: a case is known by its number."""


@dataclass(frozen=True)
class Mutation:
    """One way to damage an input.

    Attributes:
        kind: What the summary counts it under.
        name: What it does.
        target: Which input: "checkpoint", or the name under which commands ask for another.
        apply: Damages the file or folder at a path.
        during: Made while the command runs, when it opens its files for the n-th time.
    """

    kind: str
    name: str
    target: str
    apply: Callable[[Draw, Path], None]
    during: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


# Of every type that JSON and YAML have, and of sizes that nobody writes by hand.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**7, 10**9, -(10**9), 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), "", "0", "2", "1e3", "nan", "x", "é\u202e\x1b[31m", "../../x", "x" * 3000),
    *([], [0], [1, 2], [None], ["x"], [[1]], [10**9], {}, {"x": 1}, {"0": None}, {"a": {"b": {"c": []}}}, deep(60)),
)


def lines(path: Path) -> list[str]:
    """The lines of a text file, with their ends."""
    return path.read_text().splitlines(keepends=True)
