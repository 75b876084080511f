"""The data that a command reads, as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from isobasin.cli import options

if TYPE_CHECKING:
    from isobasin.refinement.calibration import DataCalibration
    from isobasin.tasks.data import Examples


def examples_for(model: str, arguments: Mapping[str, Any], allow_pickle: bool) -> Examples:
    """The data that a command's arguments (`options.DATA`, and a seed) name, as the first model sees them."""
    from isobasin.canonical import open_checkpoint
    from isobasin.tasks.data import DataOptions, prepare, read_dataset
    from isobasin.tasks.kind import kind_of
    from isobasin.tasks.processors import config_of, load_processor

    columns = parsed_columns(arguments["columns"])
    asked = options.record(DataOptions, arguments, source=arguments["data"], columns=columns)
    with open_checkpoint(model, allow_pickle=allow_pickle) as checkpoint:
        config = config_of(model, checkpoint)
        kind = arguments["task"] or kind_of(checkpoint.config)
        processor = load_processor(checkpoint.folder, kind, arguments["tokenizer"])
        return prepare(read_dataset(asked, kind), kind, processor, asked, config=config)


def calibration_for(model: str, arguments: dict[str, Any]) -> DataCalibration | None:
    """What data that a command may name (`options.DATA`) say of models; those arguments are taken out."""
    asked = {name: arguments.pop(name) for name in options.DATA}
    if asked["data"] is None:
        return None
    from isobasin.refinement.calibration import DataCalibration

    return DataCalibration(examples_for(model, asked, arguments["allow_pickle"]), arguments["device"])


def parsed_columns(text: str | None) -> dict[str, str]:
    """`text=review,label=stars` as a mapping."""
    parts = [part.partition("=") for part in (text or "").split(",") if part]
    for role, equals, column in parts:
        if not (role.strip() and equals and column.strip()):
            raise typer.BadParameter(f"{role}{equals}{column}: write ROLE=COLUMN,..., as in text=review,label=stars")
    return {role.strip(): column.strip() for role, _, column in parts}


def recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of the options, besides what the data's own line says."""
    names = ("seed", "name", "columns", "max_examples", "length", "tokenizer")
    return {name: arguments[name] for name in names} | {"columns": parsed_columns(arguments["columns"])}
