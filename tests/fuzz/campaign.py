"""Many cases, one after another, and what came of them by kind of damage and by command."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import case as cases


@dataclass
class Summary:
    """What came of some cases.

    Attributes:
        kinds: Exit codes by kind of damage; "failed" counts broken promises.
        commands: The same by command.
        failures: Every case that broke a promise, in words.
    """

    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    commands: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return sum(row["runs"] for row in self.kinds.values())

    def add(self, case: cases.Case, code: int | None, problem: str) -> None:
        for row in (self.kinds[case.kind], self.commands[case.command.name]):
            row.update(["runs", f"exit {code}", *(["failed"] if problem else [])])
        if problem:
            self.failures.append(f"{case}\n    {problem}")

    def table(self) -> str:
        """Both tables as text."""
        columns = ("runs", "exit 0", "exit 1", "exit 2", "failed")
        rows = [("", *columns)]
        for part in (self.kinds, self.commands):
            rows += [(name, *(str(part[name][column]) for column in columns)) for name in sorted(part)]
            rows.append(("",) * (1 + len(columns)))
        total = Counter[str]()
        for row in self.kinds.values():
            total.update(row)
        rows.append(("all", *(str(total[column]) for column in columns)))
        return "\n".join(f"{row[0]:18}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows)


def run(
    home: Path,
    seed: int,
    indices: Iterable[int],
    *,
    seconds: float = float("inf"),
    kinds: Sequence[str] = cases.KINDS,
    keep: Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Summary:
    """Run cases until they, or the seconds, are used up."""
    summary, begun = Summary(), time.monotonic()
    for index in indices:
        if time.monotonic() - begun > seconds:
            break
        case = cases.draw(seed, index, kinds)
        done, problem = cases.run(case, home, keep)
        summary.add(case, done.code, problem)
        if problem:
            tell(f"{case}\n    {problem}")
    return summary
