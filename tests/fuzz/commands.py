"""The commands that damaged inputs are given to, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .subjects import SUBJECTS, Subject

CHECKPOINTS = ("a", "b", "copy", "scrambled")
"""Inputs that are checkpoints: two unlike ones, and two that compute what A computes."""

_NAMED = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Command:
    """One way to call the program.

    Attributes:
        line: Its arguments; names in braces are inputs, and `{out}` is what is written.
        moved: The checkpoint whose function OUT must have, for commands that only move.
        writes: Whether OUT is a checkpoint: then it is whole or not there.
        judges: The two checkpoints that are said to compute the same by exit code 0.
        data: Of subjects with which examples it makes sense; any by default.
    """

    line: str
    moved: str | None = None
    writes: bool = False
    judges: tuple[str, str] | None = None
    data: str | None = None

    @property
    def name(self) -> str:
        """The verb, two words of it for groups of verbs."""
        words = self.line.split()
        return " ".join(words[: 2 if words[0] == "experiment" else 1])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it reads."""
        return tuple(dict.fromkeys(name for name in _NAMED.findall(self.line) if name != "out"))


def _moves(line: str, moved: str) -> Command:
    return Command(f"{line} -o {{out}}", moved, writes=True)


_TEXT = "--data {text} --tokenizer {characters} --length 8 --max-examples 4"
_MEASURED = "--points 3 --method none --batch-size 4"

COMMANDS = (
    _moves("scramble {a} --seed 3", "a"),
    _moves("scramble {a} --scope block --condition 3", "a"),
    _moves("scramble {a} --scope model --json", "a"),
    _moves("scramble {a} --no-verify", "a"),
    _moves("canonicalize {a}", "a"),
    _moves("canonicalize {a} --scope block", "a"),
    _moves("align {a} {b}", "b"),
    _moves("align {b} {a}", "a"),
    _moves("align {a} {b} --scope block --max-condition 100", "b"),
    _moves("align {a} {b} --scope model", "b"),
    _moves("align {a} {b} --scope model --untie", "b"),
    _moves("align {a} {b} --no-verify", "b"),
    _moves("align {a} {scrambled} --method paper", "scrambled"),
    _moves("apply {alignment} {b}", "b"),
    _moves("apply {alignment} {b} --no-verify", "b"),
    Command("verify {a} {copy}", judges=("a", "copy")),
    Command("verify {a} {scrambled} --seed 1", judges=("a", "scrambled")),
    Command("equivalent {a} {scrambled}", judges=("a", "scrambled")),
    Command("equivalent {a} {copy} --json", judges=("a", "copy")),
    Command("diagnose {a} {scrambled} --json", judges=("a", "scrambled")),
    Command("diagnose {a} {b} --fix -o {out}"),
    Command("compare {a} {scrambled}"),
    Command("compare {a} {b} --json"),
    Command("check {a} {b}"),
    Command("symmetry {a}"),
    Command("fingerprint {a} --json"),
    Command("scan {a} {fingerprint} --json"),
    Command("interpolate {a} {b} -t 0.5 -o {out}", writes=True),
    Command("merge {a} {b} --force-unrelated -o {out}", writes=True),
    Command("merge {a} {b} --force-unrelated --space circuit -t 0.3 -o {out}", writes=True),
    Command("transport {a} {copy} {b} -o {out}", writes=True),
    Command("transport {a} {b} {scrambled} --scope attention --scale 0.5 -o {out}", writes=True),
    Command(f"transport {{a}} {{copy}} {{b}} {_TEXT} --no-verify -o {{out}}", writes=True, data="text"),
    _moves("gauge {a} --for rtn3 --group 16 --tries 1 --steps 2", "a"),
    Command(
        f"gauge {{a}} --for nvfp4 {_TEXT} --tries 1 --steps 2 --batch-size 4 -o {{out}}", "a", writes=True, data="text"
    ),
    Command(f"barrier {{a}} {{b}} {_TEXT} {_MEASURED} -o {{out}}", data="text"),
    Command(f"barrier {{a}} {{b}} {_TEXT} {_MEASURED} -o {{records}}", data="text"),
    Command(f"barrier {{a}} {{b}} --data {{pictures}} {_MEASURED} --seed 2 -o {{out}}", data="images"),
    Command(f"barrier {{a}} {{b}} --data {{arrays}} {_MEASURED} -o {{out}}", data="images"),
    Command(
        f"barrier {{a}} {{b}} --data {{table}} --tokenizer {{characters}} --length 8 {_MEASURED} -o {{out}}",
        data="text",
    ),
    Command(
        f"barrier {{a}} {{b}} --data {{csv}} --tokenizer {{characters}} --length 8 {_MEASURED} -o {{out}}", data="text"
    ),
    Command(f"refine {{a}} {{b}} {_TEXT} --steps 2 --batch-size 4 --seed 1 -o {{out}}", writes=True, data="text"),
    Command(f"align {{a}} {{b}} {_TEXT} --objective activations -o {{out}}", "b", writes=True, data="text"),
    Command("apply {alignment} {adapter} --moved-base {b}-moved -o {out}", writes=True, data="text"),
    Command("apply {alignment} {adapter} --moved-base {b} -o {out}", writes=True, data="text"),
    Command("transport {b} {adapter} {a} --scope attention -o {out}", writes=True, data="text"),
    Command("transport {b} {adapter} {a} --alignment {alignment} --no-verify -o {out}", writes=True, data="text"),
    Command("interpolate {b} {adapter} -t 0.5 -o {out}", writes=True, data="text"),
    Command("align {b} {adapter} -o {out}", writes=True, data="text"),
    Command("verify {b} {adapter} --json", data="text"),
    Command("experiment run {study} -o {out}", data="images"),
    Command("experiment list {study}", data="images"),
)


def suitable(subject: Subject) -> list[Command]:
    """The commands that make sense for a subject."""
    return [command for command in COMMANDS if command.data in (None, subject.data)]


ALL = [(subject, command) for subject in SUBJECTS for command in suitable(subject)]
