"""The data that a command reads, as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from isobasin.choices import GENERATED
from isobasin.cli import options

if TYPE_CHECKING:
    from isobasin.refinement.calibration import DataCalibration
    from isobasin.tasks.data import DataOptions, Examples
    from isobasin.verbs.settings import Progress


# As the help of `options.LearnedExamples` says.
_LEARNED = 4096


def data_of(arguments: Mapping[str, Any]) -> DataOptions:
    """The data that a command's arguments (`options.DATA`, and a seed) name."""
    from isobasin.tasks.options import DataOptions

    columns = parsed_columns(arguments["columns"])
    return options.record(DataOptions, arguments, source=arguments["data"], columns=columns)


def learned_data(arguments: Mapping[str, Any]) -> DataOptions:
    """The same to learn from: no more than a few thousand examples are read unless that is said."""
    found = data_of(arguments)
    return found if found.max_examples or found.source == GENERATED else replace(found, max_examples=_LEARNED)


def examples_for(models: Sequence[str], arguments: Mapping[str, Any], progress: Progress) -> Examples:
    """The same data as the first of a command's models sees them."""
    from isobasin.tasks.data import examples_of

    how = {name: arguments[name] for name in ("allow_pickle", "device")}
    return examples_of(data_of(arguments), *models, progress=progress, **how)


def calibration_for(models: Sequence[str], arguments: dict[str, Any], progress: Progress) -> DataCalibration | None:
    """What data that a command may name (`options.DATA`) say of models; those arguments are taken out."""
    asked = {name: arguments.pop(name) for name in options.DATA}
    if asked["data"] is None:
        return None
    from isobasin.refinement.calibration import DataCalibration

    return DataCalibration(examples_for(models, arguments | asked, progress), arguments["device"])


def parsed_columns(text: str | None) -> dict[str, str]:
    """`text=review,label=stars` as a mapping."""
    parts = [part.partition("=") for part in (text or "").split(",") if part]
    for role, equals, column in parts:
        if not (role.strip() and equals and column.strip()):
            raise typer.BadParameter(f"{role}{equals}{column}: write ROLE=COLUMN,..., as in text=review,label=stars")
    return {role.strip(): column.strip() for role, _, column in parts}
