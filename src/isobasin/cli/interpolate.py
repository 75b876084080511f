"""`isobasin interpolate`."""

from __future__ import annotations

from typing import Annotated

import typer

from isobasin.cli import options
from isobasin.cli.console import show_json, show_path, working
from isobasin.cli.dry_run import dry_run as dry_run_of

EXAMPLE = "isobasin interpolate runs/seed0 runs/seed1-aligned -t 0.5 -o midpoint"


def interpolate(
    a: options.First,
    b: options.Second,
    output: options.Output,
    t: Annotated[
        float, typer.Option("-t", "--at", metavar="T", help="Place on the line: 0 is A, 1 is B; beyond, it goes on.")
    ] = 0.5,
    take_config: options.TakeConfig = False,
    by_name: options.ByName = False,
    common_rows: options.CommonRows = False,
    untie: options.Untie = False,
    force: options.Force = False,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Write the point (1 - t) A + t B of the straight line between two checkpoints."""
    arguments = options.given(locals())
    if dry_run:
        return dry_run_of((a, b), arguments | {"as_json": as_json}, "interpolate", matches=False)
    with working("reading") as progress:
        from isobasin.verbs.interpolate import interpolate

        interpolate(**arguments, progress=progress)
    if as_json:
        show_json({"output": str(output), "verified": None, "t": t})
        return
    show_path("Written to", output)
