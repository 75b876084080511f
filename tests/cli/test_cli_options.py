"""Every option of a command reaches the library by its name: one that no verb and no record takes would do nothing."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest

from isobasin.cli import examples, options
from isobasin.cli.examples import learned_data
from isobasin.lines.ends import Measuring
from isobasin.lines.measure import measure
from isobasin.refinement.recipe import Refining
from isobasin.tasks import generated
from isobasin.tasks.options import DataOptions
from isobasin.verbs.settings import Matching, Running

VERBS = (
    *("align", "apply", "scramble", "canonicalize", "interpolate", "merge", "transport"),
    *("verify", "equivalent", "compare", "scan", "diagnose"),
)
_DATA = {*options.DATA}
READS = {
    "align": _DATA | {*options.ENGINE} - {"engine"},
    "merge": _DATA | {"refine", "minutes"},
    "transport": _DATA,
    "diagnose": {"fix"},
}
# Asked of by other names.
OTHERS = {"as_json", "no_verify", "dry_run"}
RECORDS: dict[str, tuple[Any, ...]] = {
    "barrier": (measure, Measuring, DataOptions),
    "gauge": (import_module("isobasin.quantisation.gauge").gauge, Refining, Running, DataOptions),
    "refine": (import_module("isobasin.refinement.refine").refine, Refining, Matching, Running, DataOptions),
}


def taken(kinds: tuple[Any, ...]) -> set[str]:
    """The names that functions and records take."""
    return {name for kind in kinds for name in inspect.signature(kind).parameters}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_takes_what_its_command_has(name: str):
    command = getattr(import_module(f"isobasin.cli.{name}"), name)
    verb = getattr(import_module(f"isobasin.verbs.{name}"), name)
    left = taken((command,)) - taken((verb,)) - OTHERS
    assert left == READS.get(name, set())


@pytest.mark.parametrize("name", RECORDS)
def test_records_take_what_the_other_commands_have(name: str):
    command = getattr(import_module(f"isobasin.cli.{name}"), name)
    left = taken((command,)) - taken(RECORDS[name]) - OTHERS - set(options.DATA)
    assert left == ({"method", "no_temperature"} if name == "barrier" else set())


def test_a_record_is_made_of_its_own_options():
    arguments = {"steps": 7, "both": False, "device": "cpu", "force": True, "verify": False, "more": 1}
    assert options.record(Refining, arguments, noise=0.0) == Refining(steps=7, both=False, noise=0.0)
    assert options.record(Running, arguments) == Running(force=True, verify=False)
    assert {"steps", "both"} <= {field.name for field in fields(Refining)}


@pytest.mark.parametrize(
    ("data", "asked", "read"), [("a.txt", None, 4096), ("a.txt", 7, 7), ("generated", None, None), ("generated", 9, 9)]
)
def test_how_many_examples_are_learned_from(data, asked, read):
    """As many as the help says, of what is read and of what models write."""
    arguments = {"data": data, "columns": None, "max_examples": asked, "length": None}
    assert learned_data(arguments).max_examples == read
    shown = options.LearnedExamples.__metadata__[0].show_default
    assert shown == f"{examples._LEARNED}, generated {generated._COUNT}"
