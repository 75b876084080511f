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
from isobasin.cli.dry_run import dry_run as dry_run_of
from isobasin.recipes import saying

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
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    moved_base: Annotated[
        str | None,
        typer.Option(
            "--moved-base",
            metavar="FOLDER",
            help="Of a LoRA adapter: its moved base, which the new one names; by default the folder that ALIGNMENT is "
            "in, if a model is there.",
        ),
    ] = None,
) -> None:
    """Make the move that `align` found on another checkpoint, say a fine-tune of the one it was found for.

    MODEL may be a LoRA adapter of that: OUT is one of the moved model then.
    """
    arguments = options.given(locals())
    if dry_run:
        from isobasin.alignment import Alignment

        Alignment.load(alignment)
        return dry_run_of((), arguments | {"as_json": as_json}, "apply", matches=False, moved=model)
    with working("reading") as progress:
        from isobasin.alignment import Alignment
        from isobasin.canonical import adapter_in
        from isobasin.verbs.apply import apply

        arguments["alignment"] = Alignment.load(alignment)
        if moved_base is None and adapter_in(model) is not None:
            arguments["moved_base"] = _beside(alignment)
        with saying(moved_base=arguments["moved_base"]):
            moved = apply(**arguments, progress=progress)
    show_moved(moved, output, as_json)


def _beside(alignment: Path) -> str | None:
    """The folder that an alignment is in, if a model is there."""
    folder = alignment if alignment.is_dir() else alignment.parent
    return str(folder) if (folder / "config.json").is_file() else None
