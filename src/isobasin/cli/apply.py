"""`isobasin apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isobasin.beside import ALIGNMENT
from isobasin.choices import Device, Dtype
from isobasin.cli import options
from isobasin.cli.console import working
from isobasin.cli.delivery import show_moved

EXAMPLE = f"isobasin apply aligned/{ALIGNMENT} finetuned -o finetuned-moved"


def apply(
    alignment: Annotated[
        Path,
        typer.Argument(metavar="ALIGNMENT", help=f"{ALIGNMENT} that `align` wrote, or the folder it is in."),
    ],
    model: options.Model,
    output: options.Output,
    device: options.Device = Device.auto,
    dtype: options.Dtype = Dtype.keep,
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
) -> None:
    """Make the move that `align` found on another checkpoint, say a fine-tune of the one it was found for."""
    arguments = options.given(locals())
    with working("reading") as progress:
        from isobasin.alignment import Alignment
        from isobasin.verbs.apply import apply

        arguments["alignment"] = Alignment.load(alignment)
        moved = apply(**arguments, progress=progress)
    show_moved(moved, output, as_json)
