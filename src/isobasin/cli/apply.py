"""`isobasin apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isobasin.choices import Device, Dtype
from isobasin.cli.console import working
from isobasin.cli.delivery import show_moved
from isobasin.cli.options import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    NoVerifyOption,
    OutputOption,
)

EXAMPLE = "isobasin apply aligned/alignment.safetensors finetuned -o finetuned-moved"


def apply(
    alignment: Annotated[
        Path,
        typer.Argument(metavar="ALIGNMENT", help="alignment.safetensors that `align` wrote, or the folder it is in."),
    ],
    model: ModelArgument,
    output: OutputOption,
    device: DeviceOption = Device.cpu,
    dtype: DtypeOption = Dtype.keep,
    force: ForceOption = False,
    no_verify: NoVerifyOption = False,
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the move that `align` found on another checkpoint, say a fine-tune of the one it was found for."""
    with working("reading") as progress:
        from isobasin.alignment import Alignment
        from isobasin.verbs.apply import apply

        moved = apply(
            Alignment.load(alignment),
            model,
            output,
            device=device,
            dtype=dtype.resolve(),
            verify=not no_verify,
            force=force,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    show_moved(moved, output, as_json)
